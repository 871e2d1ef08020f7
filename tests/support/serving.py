"""A server of the embedded pair in this process, on a free port, and what its clients need."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

import glimprouter as gr
from glimprouter.demo_pair import RECOMMENDED_THRESHOLD, large_path, small_path
from glimprouter.demo_pair.task import held_out_problems
from glimprouter.hf import Result, RoutedModel
from glimprouter.serve.app import Server
from glimprouter.serve.options import ServerOptions
from glimprouter.serve.run import listen, make_server
from glimprouter.vllm import RoutedEngines

CONFIG = gr.RouterConfig(
    threshold=RECOMMENDED_THRESHOLD,
    temperature=1.3,
    top_p=1.0,
    max_think_tokens=160,
    max_answer_tokens=16,
)
PROMPTS = [problem.prompt for problem in held_out_problems(40, seed=5)]


def new_pair(max_sequences: int = 8, drafts: Any = 0, **options: Any) -> RoutedModel:
    """The embedded pair; without drafts two runs have the same passes."""
    return RoutedModel.from_pretrained(
        small_path(),
        large_path(),
        dtype="float32",
        config=CONFIG,
        max_sequences=max_sequences,
        drafts=drafts,
        on_invalid="end",
        **options,
    )


@cache
def slow_pair(max_sequences: int = 8) -> RoutedModel:
    """By the models' own code: what may happen to a long request has seconds to do so."""
    return new_pair(max_sequences, fused_layers=False)


@cache
def lone_pair() -> RoutedModel:
    """For what each request is compared with: the same prompt alone."""
    return new_pair()


def alone(prompt: Any, seed: int, **overrides: Any) -> Result:
    """What a prompt leads to in a run of its own."""
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return lone_pair().generate([chat], seeds=[seed], **overrides)[0]


def reasoning_of(result: Result) -> str:
    """The thinking of a result, as an answer has it."""
    text = result.text.split("</think>")[0]
    return text.removeprefix("<think>").strip()


@dataclass
class Running:
    """A server that runs."""

    url: str
    server: Server
    model: RoutedModel | RoutedEngines
    stop: Callable[[], None]

    @cached_property
    def openai(self) -> openai.OpenAI:
        """The real client, which stays open: streams need it."""
        return self.client()

    def client(self, **options: Any) -> openai.OpenAI:
        """The real client."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options}
        )

    def chat(self, prompt: str, seed: int = 0, **options: Any) -> Any:
        """One answer by the real client."""
        return self.openai.chat.completions.create(
            model="glimprouter",
            messages=[{"role": "user", "content": prompt}],
            seed=seed,
            **options,
        )

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        """A request without the client's help."""
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def wait_until_idle(self) -> None:
        """Until nothing runs or waits: what a client left behind is taken away soon."""
        while self.server.front.in_flight:
            time.sleep(0.01)

    def held(self) -> tuple[Any, ...]:
        """Rows, pages, records, tickets: all 0 where nothing runs."""
        self.wait_until_idle()
        engine: Any = self.server.front.engine
        while engine._tickets or engine._jobs:
            time.sleep(0.01)
        usage = engine.usage
        while usage is not engine.usage or (usage and usage.running):  # it is noted after a pass
            time.sleep(0.01)
            usage = engine.usage
        assert usage is not None
        pages = None if usage.memory is None else usage.memory.bytes_used
        return usage.running, usage.preempted, usage.waiting, pages, len(self.server.front._streams)


def metrics(server: Running) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def running(model: RoutedModel | RoutedEngines | None = None, **options: Any) -> Iterator[Running]:
    """A server on a free port of this machine, stopped at the end."""
    model = model or new_pair()
    listener = listen("127.0.0.1", 0)
    uvicorn = make_server(model, ServerOptions(**options))
    own: Server = uvicorn.config.app.state.server  # type: ignore[union-attr]
    thread = threading.Thread(
        target=lambda: asyncio.run(uvicorn.serve(sockets=[listener])), daemon=True
    )
    thread.start()
    while not uvicorn.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)

    def stop() -> None:
        uvicorn.handle_exit(15, None)
        thread.join()

    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield Running(url, own, model, stop)
    finally:
        if thread.is_alive():
            stop()
