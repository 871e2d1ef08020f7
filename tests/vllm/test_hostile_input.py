"""What comes to engines that nobody planned for: huge prompts, clients side by side, odd tokens."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from glimprouter.hf import Result
from glimprouter.vllm import EngineRefused, RoutedEngines
from glimprouter.vllm.engines.base import EngineRequest
from hf_pairs import trained_pair
from played_engines import PlayedEngine, played, same

TEN_MEGABYTES = 10_000_000


@pytest.mark.parametrize("prompt", ["7" * TEN_MEGABYTES, [65] * TEN_MEGABYTES], ids=["text", "ids"])
def test_a_prompt_of_ten_megabytes_is_refused_before_it_is_sent(prompt: Any) -> None:
    """And the prompts beside it are not begun either; the next call is none the worse."""
    pair = trained_pair()
    client, small, large = played(pair)
    with pytest.raises(ValueError, match=r"prompt 1 .*context of 2048") as refused:
        client.generate([pair.prompts[0], prompt])
    assert len(str(refused.value)) < 1000, "the prompt itself is no part of a message"
    assert len(small.requests) == len(large.requests) == 1, "greetings only"
    same(client.generate(pair.prompts[:1]), pair.routed().generate(pair.prompts[:1]))
    client.close()


def test_two_clients_on_one_deployment() -> None:
    """At the same time, with unlike options: each writes as if it were alone."""
    pair = trained_pair()
    first, small, large = played(pair)
    options = {"threshold": 0.1, "temperature": 0.7, "large_tokens": 2}
    second = RoutedEngines(small, large, pair.tokenizer, first.config.replace(**options))
    alone = [client.generate(pair.prompts, 3) for client in (first, second)]
    for client in (first, second):
        client.close()

    async def both() -> list[list[Result]]:
        clients = [
            RoutedEngines(small, large, pair.tokenizer, each.config) for each in (first, second)
        ]
        return list(
            await asyncio.gather(*(client.agenerate(pair.prompts, 3) for client in clients))
        )

    for together, own in zip(asyncio.run(both()), alone, strict=True):
        same(together, own)
    writers = [
        [[step.model for step in result.trace.steps] for result in results] for results in alone
    ]
    assert writers[0] != writers[1]


@pytest.mark.parametrize("which", ["small", "large"])
def test_a_model_that_writes_the_handoff_token_itself(which: str) -> None:
    """It is a token like any other: text goes on behind it, and nobody takes it for a hand-off."""
    pair = trained_pair()
    client, small, large = played(pair, threshold=0.2)
    want = client.generate(pair.prompts[:1])[0]
    engine = small if which == "small" else large
    handoff = engine.requests[-1].gate.handoff
    assert handoff not in want.token_ids
    written: list[int] = []

    def write_it(logits: torch.Tensor, request: EngineRequest) -> None:
        """Once, as the first token of a turn in the middle."""
        first = not written and len(request.prompt) > len(pair.prompts[0]) + 5
        if first and request.gate.hello is None and not request.gate.answering:
            written.append(len(request.prompt) - len(pair.prompts[0]))
            logits[0, handoff] = 60.0

    engine.change = write_it
    (result,) = client.generate(pair.prompts[:1])
    assert result.trace.error is None
    assert [place for place, token in enumerate(result.token_ids) if token == handoff] == written
    assert result.token_ids[: written[0]] == want.token_ids[: written[0]]
    assert result.trace.end_reason == want.trace.end_reason == "eos"
    client.close()


@pytest.mark.parametrize("missing", ["sample", "gpu"])
def test_a_vllm_without_the_interfaces_is_named(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Older than the first interface, or without the second: the server's log says what to do."""
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "glimprouter.vllm.gate.processor", raising=False)
    there = ["vllm", "vllm.v1"]
    if missing == "gpu":
        there += ["vllm.v1.sample", "vllm.v1.sample.logits_processor"]
    for name in there:
        module = ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["vllm"].__version__ = "0.7.3"  # type: ignore[attr-defined]
    if missing == "gpu":
        own: Any = sys.modules["vllm.v1.sample.logits_processor"]
        own.LogitsProcessor, own.MoveDirectionality = object, object
    with pytest.raises(ImportError, match=r"vLLM 0\.7\.3 has not both interfaces.*made for 0\.32"):
        importlib.import_module("glimprouter.vllm.gate.processor")


def test_an_engine_that_refuses_keeps_the_sequence() -> None:
    """A request that is too large for what stands before a server, say: nothing is lost."""
    pair = trained_pair()
    want = pair.routed().generate(pair.prompts[:1])
    client, small, _ = played(pair)
    client.check()
    engine: PlayedEngine = small

    def refuse(tokens: int) -> None:
        if tokens > 20:
            raise EngineRefused("413: request entity too large")

    engine.fault = refuse
    (result,) = client.generate(pair.prompts[:1])
    assert "413: request entity too large" in str(result.trace.error)
    engine.fault = None
    (event,) = [e for e in client.resume(list(client.saved.values())) if e.result is not None]
    assert event.result is not None
    same([event.result], want)
    client.close()
