"""An engine that is silent, lost, or comes back as something else: who is told, and when."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import torch

from glimprouter.vllm import EngineLost
from glimprouter.vllm.engines.base import EngineRequest, Piece
from glimprouter.vllm.engines.checked import CheckedEngine
from hf_pairs import trained_pair
from played_engines import PlayedEngine, played, same
from serving_engines import done

SILENT = 600.0
SECONDS = 5.0 if torch.get_num_threads() > 1 else 2.0  # in which a token comes


class OftenSilent(PlayedEngine):
    """Says nothing to as many requests as it is told."""

    silent = 0

    async def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        if self.silent:
            self.silent -= 1
            await asyncio.sleep(SILENT)
        async for piece in super().write(request):
            yield piece


def often_silent(**options: Any) -> tuple[Any, OftenSilent]:
    pair = trained_pair()
    client, _, _ = played(pair, **options)
    small = OftenSilent(pair.small, pair.tokenizer)
    client._engines["small"] = CheckedEngine("small", small, SECONDS)
    client.check()
    return client, small


@pytest.mark.parametrize("streams", [True, False])
def test_an_engine_that_writes_nothing_for_too_long_is_lost(streams: bool) -> None:
    """Where an answer comes as a whole, the engine is asked for another token first."""
    pair = trained_pair()
    want = pair.routed().generate(pair.prompts[:1])
    client, small = often_silent()
    small.silent = 1 if streams else 2
    got = done(client.stream(pair.prompts[:1])) if streams else client.generate(pair.prompts[:1])
    same(got, want)
    assert small.silent == 0
    assert client.usage["small"].retries == 1
    assert not small.requests[2].whole  # the one that was lost is streamed when it is sent again
    client.close()


def test_a_whole_answer_may_take_longer_than_a_token() -> None:
    """As long as the engine answers others: it is there, and writes."""
    pair = trained_pair()
    want = pair.routed().generate(pair.prompts[:1])
    client, small = often_silent()
    greeted, write = asyncio.Event(), small.write

    async def slow(request: EngineRequest) -> AsyncGenerator[Piece, None]:
        if request.gate.hello is None:
            await greeted.wait()
        async for piece in write(request):
            yield piece
        if request.gate.hello is not None:
            greeted.set()

    small.write = slow  # type: ignore[method-assign]
    same(client.generate(pair.prompts[:1]), want)
    assert greeted.is_set()
    assert client.usage["small"].retries == 0
    client.close()


def test_a_request_that_ends_without_a_token_is_sent_again() -> None:
    """vLLM aborts what it cannot finish, when it is told to stop, say."""
    pair = trained_pair()
    want = pair.routed().generate(pair.prompts[:1])
    client, small, _ = played(pair)
    client.check()
    write, aborted = small.write, [True, True]

    async def aborting(request: EngineRequest) -> AsyncGenerator[Piece, None]:
        if aborted:  # the request, then the greeting behind it
            aborted.pop()
            yield Piece([], [], 0, "abort")
            return
        async for piece in write(request):
            yield piece

    small.write = aborting  # type: ignore[method-assign]
    same(client.generate(pair.prompts[:1]), want)
    assert client.usage["small"].retries == 2
    assert client.away == {}
    client.close()


def test_one_check_serves_all_who_wait_for_it() -> None:
    """Each with a check of its own would end one after another, later than the patience."""
    pair = trained_pair()
    client, small, _ = played(pair)
    client.check()
    engine = client._engines["small"]
    engine._checked = False
    request = EngineRequest("r", pair.prompts[0], 1, client._pair.common["small"], [])  # type: ignore[union-attr]

    async def main() -> None:
        asked, answer = [0], asyncio.Event()

        async def facts() -> Any:
            asked[0] += 1
            await answer.wait()
            raise EngineLost("connection refused")

        small.facts = facts  # type: ignore[method-assign]
        waiting = [asyncio.ensure_future(anext(engine.write(request))) for _ in range(20)]
        while not asked[0]:
            await asyncio.sleep(0)
        waiting[0].cancel()  # who goes away takes nothing from the others
        answer.set()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(ends[0], asyncio.CancelledError)
        assert all(isinstance(end, EngineLost) for end in ends[1:])
        assert asked == [1]

    client.thread.call(main())
    client.close()


@pytest.mark.parametrize(("name", "value"), [("name", "another"), ("_context", 1024)])
def test_an_engine_that_came_back_as_another_is_away(name: str, value: Any) -> None:
    """Between two questions nobody has seen that it was gone."""
    client, small, _ = played(trained_pair())
    client.check()
    before = getattr(small, name)
    setattr(small, name, value)
    client.thread.call(client.aprobe())
    assert list(client.away) == ["small"]
    setattr(small, name, before)
    client.thread.call(client.aprobe())
    assert client.away == {}
    client.close()


def test_one_of_another_version_is_asked_for_its_gate() -> None:
    client, small, _ = played(trained_pair())
    client.check()
    client.thread.call(client.aprobe())
    assert len(small.requests) == 1
    small.version = "0.33.0"
    with pytest.warns(RuntimeWarning, match=r"0\.33\.0; .*with 0\.32$"):
        client.thread.call(client.aprobe())
    assert (len(small.requests), client.away) == (2, {})
    client.thread.call(client.aprobe())
    assert len(small.requests) == 2
    small.version, small.gate = "0.32.0", False
    client.thread.call(client.aprobe())
    assert list(client.away) == ["small"]
    client.close()


def test_patience_is_kept_where_nothing_comes() -> None:
    pair = trained_pair()
    client, _, _ = played(pair, patience=0.0)
    client.check()

    async def aborting(request: EngineRequest) -> AsyncGenerator[Piece, None]:
        yield Piece([], [], 0, "abort")

    client._engines["small"]._engine.write = aborting  # type: ignore[method-assign]
    (result,) = client.generate(pair.prompts[:1])
    assert "without a token; it stayed away" in str(result.trace.error)
    assert list(client.saved) == [0]
    assert client.away["small"] < math.inf
    client.close()
