"""Engines of vLLM for the comparison: their options, two servers, and plain requests to either."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
    # Two engines on two cores: a worker within its engine's process, not beside it where both wait
    # in loops; and no guards of compiled functions where models run eagerly.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
}
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "block_size": 32,
    "max_num_seqs": 32,
    "disable_log_stats": True,
}
SECONDS_TO_START = 300


@dataclass(frozen=True)
class Reply:
    """What an engine wrote.

    Attributes:
        ids: Tokens.
        logprobs: Of the likeliest candidates of the first token, where they were asked for.
    """

    ids: list[int]
    logprobs: list[float]


class PlainEngine(Protocol):
    """Writes what it is asked for, by one of the two models."""

    async def ask(
        self,
        model: str,
        ids: list[int],
        max_tokens: int,
        *,
        stops: list[int] | None = None,
        candidates: int | None = None,
        to_the_end: bool = True,
    ) -> Reply:
        """One request, greedy; the answer comes as a whole.

        Args:
            model: ``"small"`` or ``"large"``.
            ids: Prompt.
            max_tokens: To write at most.
            stops: Tokens that end it; they are part of it.
            candidates: Of the first token, whose log-probabilities are wanted.
            to_the_end: Whether an end of the sequence ends it; else it writes ``max_tokens``.
        """


class InProcess:
    """Two ``AsyncLLM`` of this process."""

    def __init__(self, small: Any, large: Any) -> None:
        self._engines = {"small": small, "large": large}
        self._numbers = itertools.count()

    async def ask(
        self,
        model: str,
        ids: list[int],
        max_tokens: int,
        *,
        stops: list[int] | None = None,
        candidates: int | None = None,
        to_the_end: bool = True,
    ) -> Reply:
        """As of :class:`PlainEngine`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            detokenize=False,
            max_tokens=max_tokens,
            stop_token_ids=stops,
            logprobs=candidates,
            ignore_eos=not to_the_end,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"plain-{next(self._numbers)}"
        answers = self._engines[model].generate({"prompt_token_ids": ids}, params, name)
        (last,) = [answer async for answer in answers]
        (own,) = last.outputs
        found = own.logprobs[0].values() if candidates else ()
        return Reply(list(own.token_ids), [one.logprob for one in found])


class OverHttp:
    """Two servers, asked as clients of OpenAI's completions do."""

    def __init__(self, urls: dict[str, str], paths: dict[str, Path]) -> None:
        import httpx

        self._paths = paths
        self._clients = {
            name: httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)
            for name, url in urls.items()
        }

    async def ask(
        self,
        model: str,
        ids: list[int],
        max_tokens: int,
        *,
        stops: list[int] | None = None,
        candidates: int | None = None,
        to_the_end: bool = True,
    ) -> Reply:
        """As of :class:`PlainEngine`."""
        body = {
            "model": str(self._paths[model]),
            "prompt": ids,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "stop_token_ids": stops or [],
            "ignore_eos": not to_the_end,
        }
        if candidates:
            body["logprobs"] = candidates
        answer = await self._clients[model].post("/v1/completions", json=body)
        answer.raise_for_status()
        (choice,) = answer.json()["choices"]
        found = choice["logprobs"]["top_logprobs"][0].values() if candidates else ()
        return Reply(list(choice["token_ids"]), list(found))

    async def forget(self) -> None:
        """Empties the prefix caches."""
        for client in self._clients.values():
            (await client.post("/reset_prefix_cache")).raise_for_status()


class GatedServer:
    """A server of vLLM with the gate, in a process of its own."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        named = {name.replace("_", "-"): value for name, value in OPTIONS.items()}
        options = [f"--{k}" if value is True else f"--{k}={value}" for k, value in named.items()]
        options += ["--logits-processors", "glimprouter.vllm:GlimpGate"]
        options += ["--logprobs-mode", "processed_logits", "--enable-prompt-tokens-details"]
        options += ["--disable-uvicorn-access-log"]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
        command += [str(model), "--host", "127.0.0.1", "--port", str(port), *options]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - the process keeps it
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it answers.

        Raises:
            RuntimeError: It has ended, or takes too long.
        """
        import httpx

        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        self._log.seek(0)
        raise RuntimeError(f"a server did not start: {self._log.read()[-2000:].decode()}")

    def end(self) -> None:
        """With all of its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()
