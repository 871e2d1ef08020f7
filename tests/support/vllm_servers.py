"""Servers of vLLM in processes of their own, on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import glimprouter

# Small models on a CPU: no kernels to compile, whole blocks as small as they come.
ENGINE_OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "block_size": 32,
    "max_num_seqs": 32,
}
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
_SECONDS_TO_START = 500


def set_environment() -> None:
    """For engines of this process; before vLLM is imported."""
    os.environ.update(_ENVIRONMENT)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class GatedServer:
    """One server; it can be killed and started again on its port."""

    def __init__(self, model: Path, log: Path, *, gate: bool = True) -> None:
        """Starts it, and does not wait.

        Args:
            model: Directory.
            log: What it writes goes there.
            gate: Whether it has one.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        options = [
            f"--{name.replace('_', '-')}"
            if value is True
            else f"--{name.replace('_', '-')}={value}"
            for name, value in ENGINE_OPTIONS.items()
        ]
        if gate:
            options += ["--logits-processors", "glimprouter.vllm:GlimpGate"]
            options += ["--logprobs-mode", "processed_logits", "--enable-prompt-tokens-details"]
        self._command = [
            sys.executable,
            *("-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--host", "127.0.0.1", "--port", str(self.port), *options),
        ]
        self._log = log
        self.start()

    def start(self) -> None:
        """Starts it again."""
        package = Path(glimprouter.__file__).parents[1]
        path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path.rstrip(os.pathsep)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                text = self._log.read_text(errors="replace")
                raise RuntimeError(
                    f"the server ended with {self._process.returncode}: {text[-4000:]}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"the server did not start in {_SECONDS_TO_START} s")

    def kill(self) -> None:
        """Ends it with all of its processes, as a crash does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
