"""The same endpoint in front of two engines that play vLLM: texts, faults, stops, what is told."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import glimprouter as gr
from glimprouter.hf import Result
from glimprouter.serve import engines_loop
from glimprouter.serve.engines_loop import EnginesLoop
from glimprouter.serve.jobs import Job
from glimprouter.vllm import EngineLost, EngineRefused, RoutedEngines
from glimprouter.vllm.engines.base import EngineRequest, Piece
from hf_pairs import trained_pair
from played_engines import PlayedEngine
from serving import PROMPTS, Running, metrics, reasoning_of, running

CONFIG = gr.RouterConfig(
    threshold=0.5, temperature=0.0, top_p=1.0, max_think_tokens=80, max_answer_tokens=12
)
LONG = {"max_think_tokens": 800, "route": "large", "repetition_guard": False}


class WatchedEngine(PlayedEngine):
    """Counts the requests that are under way."""

    under_way = 0

    async def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        self.under_way += 1
        try:
            async for piece in super().write(request):
                yield piece
        finally:
            self.under_way -= 1


def engines(config: gr.RouterConfig = CONFIG, **options: Any) -> RoutedEngines:
    """The embedded pair on two engines."""
    pair = trained_pair()
    made = [WatchedEngine(model, pair.tokenizer) for model in (pair.small, pair.large)]
    options = {"max_sequences": 8, "on_invalid": "end", "patience": 0.3, **options}
    return RoutedEngines(*made, pair.tokenizer, config, **options)


@cache
def alone(prompt: str) -> Result:
    """What a RoutedModel of the same weights makes of it, greedy."""
    options = dataclasses.asdict(CONFIG)
    chat = [{"role": "user", "content": prompt}]
    return trained_pair().routed(**options).generate([chat])[0]


def played(model: RoutedEngines, name: str) -> WatchedEngine:
    engine: Any = model._engines[name]._engine
    return engine


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(engines()) as own:
        yield own


def done(run: Any) -> list[Result]:
    return [event.result for event in run if event.result is not None]


def test_texts_are_those_of_a_routed_model(server: Running) -> None:
    """Greedy; thinking apart from the content, whole and streamed, tokens by their writers."""
    for prompt in PROMPTS[:4]:
        want = alone(prompt)
        answer = server.chat(prompt, 3, extra_body={"glimprouter": {"trace": True}})
        (choice,) = answer.choices
        assert choice.message.reasoning_content == reasoning_of(want)
        assert choice.message.content == want.answer
        usage, trace = answer.usage.glimprouter, choice.glimprouter["trace"]
        steps = [(step.model, step.text) for step in want.trace.steps]
        assert [(step["model"], step["text"]) for step in trace["steps"]] == steps
        assert usage["small_tokens"] + usage["large_tokens"] == want.trace.total_tokens
        assert usage["large_tokens"] > 0
        chunks = list(server.chat(prompt, 3, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        thought = "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas)
        assert thought == reasoning_of(want)
        assert "".join(delta.content or "" for delta in deltas) == want.answer


def test_sampled_texts_are_those_of_the_engines_alone(server: Running) -> None:
    """Together with others, by seed and number of the choice."""
    options: dict[str, Any] = {"temperature": 1.1, "n": 3}
    lone = engines()
    chat = [{"role": "user", "content": PROMPTS[0]}]
    run = lone.stream([chat, chat, chat], 7, temperature=1.1)
    results = {event.sequence: event.result for event in run if event.result is not None}
    texts: list[list[str]] = []

    def ask() -> None:
        answer = server.chat(PROMPTS[0], 7, **options)
        texts.append([choice.message.content for choice in answer.choices])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = [results[place].answer for place in range(3)]
    assert texts == [want, want]
    assert len({result.text for result in results.values()}) > 1
    lone.close()


def test_a_request_has_its_own_options(server: Running) -> None:
    """Route, budgets, stops, completions; and what is no option of it is refused."""
    everything = server.chat(PROMPTS[1], extra_body={"glimprouter": {"route": "large"}})
    assert everything.usage.glimprouter["small_tokens"] == 0
    small = server.chat(
        PROMPTS[1], extra_body={"glimprouter": {"route": "small", "answer_model": "small"}}
    )
    assert small.usage.glimprouter["large_tokens"] == 0
    cut = server.chat(PROMPTS[1], max_tokens=9)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 9)
    want = alone(PROMPTS[1])
    stopped = server.chat(PROMPTS[1], stop=[want.answer[-1]])
    assert want.answer.startswith(stopped.choices[0].message.content)
    assert stopped.choices[0].message.content != want.answer
    text = server.openai.completions.create(model="glimprouter", prompt="Reduce 3,9", max_tokens=8)
    assert text.choices[0].text
    with pytest.raises(openai.BadRequestError, match=r"glimprouter\.drafts"):
        server.chat(PROMPTS[1], extra_body={"glimprouter": {"drafts": 4}})
    with pytest.raises(openai.BadRequestError, match="context"):
        server.chat("1 " * 3000)
    assert server.openai.models.list().data[0].model_extra["max_model_len"] == 2048


def test_what_is_told(server: Running) -> None:
    """Counters of the engines, and nothing of memory or drafts that nobody here knows of."""
    server.chat(PROMPTS[2])
    assert server.held() == (0, 0, 0, None, 0)
    found = metrics(server)
    for name in ("small", "large"):
        usage = server.model.usage[name]  # type: ignore[union-attr]
        assert found["glimprouter_engine_requests_total", name] == usage.requests > 0
        assert found["glimprouter_engine_prompt_tokens_total", name] == usage.prompt_tokens > 0
        assert found["glimprouter_engine_up", name] == 1
        assert found["glimprouter_tokens_total", name] > 0
    assert found["glimprouter_rows",] == 8
    assert found["glimprouter_rows_used",] == 0
    assert not [name for name, *_ in found if "draft" in name or "page" in name]
    health = httpx.get(f"{server.url}/health").json()
    assert health == {"status": "ok", "engines": {"small": "ok", "large": "ok"}}


def test_a_client_that_leaves_ends_its_requests() -> None:
    """The sequence that is written, and the one that waits for its row."""
    model = engines(max_sequences=1)
    with running(model) as server:
        options: dict[str, Any] = {"extra_body": {"glimprouter": LONG}, "stream": True}
        runs = server.chat(PROMPTS[0], **options)
        for _ in range(5):
            next(runs)
        waits = server.chat(PROMPTS[1], **options)
        assert played(model, "large").under_way == 1
        for stream in (waits, runs):
            stream.close()
        assert server.held() == (0, 0, 0, None, 0)
        assert played(model, "large").under_way == 0
        assert len(played(model, "large").requests) == 2  # with the greeting
        text = httpx.get(f"{server.url}/metrics").text
        assert 'glimprouter_sequences_total{reason="cancelled"} 2.0' in text
        engine: Any = server.server.front.engine
        assert not engine._run._sequences


def test_a_full_queue_says_when_to_come_again() -> None:
    with running(engines(max_sequences=1), max_waiting=1) as server:
        first = server.chat(PROMPTS[0], stream=True)
        second = server.chat(PROMPTS[1], stream=True)
        with pytest.raises(openai.RateLimitError, match="2 sequences run or wait"):
            server.chat(PROMPTS[2])
        for stream in (first, second):
            assert list(stream)[-1].choices[0].finish_reason
        assert server.chat(PROMPTS[2]).choices[0].finish_reason


def test_an_engine_that_is_lost_and_comes_back_changes_nothing() -> None:
    model = engines(patience=60.0)
    with running(model) as server:
        lost = [5, 20, 30]

        def fault(tokens: int) -> None:
            if lost and tokens >= lost[0]:
                del lost[0]
                raise EngineLost("the connection was reset")

        played(model, "large").fault = fault
        answer = server.chat(PROMPTS[0], 3)
        assert answer.choices[0].message.content == alone(PROMPTS[0]).answer
        assert model.usage["large"].retries >= 1
        assert not model.away


def test_an_engine_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sequences end and are kept, others go on, the server says so, and is well again later."""
    monkeypatch.setattr(engines_loop, "_SECONDS_TO_PROBE", 0.05)
    model = engines()
    large = played(model, "large")
    gone = True

    def fault(tokens: int) -> None:
        if gone:
            raise EngineLost("http://10.1.2.3:8002: connection refused")

    with running(model, save_dir=tmp_path) as server:
        large.fault = fault
        alike = {"glimprouter": {"route": "small", "answer_model": "small"}}
        goes_on = server.chat(PROMPTS[0], stream=True, extra_body=alike)
        with pytest.raises(openai.InternalServerError, match="large model's engine does") as told:
            server.chat(PROMPTS[1])
        assert told.value.status_code == 503
        assert "10.1.2.3" not in str(told.value)
        assert list(goes_on)[-1].choices[0].finish_reason
        (saved,) = tmp_path.iterdir()
        assert saved.stem in str(told.value)
        while (health := httpx.get(f"{server.url}/health")).status_code == 200:
            time.sleep(0.01)
        assert "does not answer" in health.json()["engines"]["large"]
        assert health.json()["engines"]["small"] == "ok"
        assert metrics(server)["glimprouter_engine_up", "large"] == 0
        with pytest.raises(openai.InternalServerError, match="does not answer") as told:
            server.chat(PROMPTS[1])
        assert told.value.status_code == 503
        gone = False
        while httpx.get(f"{server.url}/health").status_code == 503:
            time.sleep(0.01)
        want = alone(PROMPTS[1])
        assert server.chat(PROMPTS[1]).choices[0].message.content == want.answer
        assert server.held() == (0, 0, 0, None, 0)
        results = done(engines().resume([saved.read_bytes()]))
        assert results[0].text == want.text


def test_a_stopped_server_lets_its_sequences_end() -> None:
    want = [alone(prompt).answer for prompt in PROMPTS[:2]]
    with running(engines(max_sequences=1)) as server:
        stream = server.chat(PROMPTS[0], 3, stream=True)
        next(stream)
        waiting: list[Any] = []
        other = threading.Thread(target=lambda: waiting.append(server.chat(PROMPTS[1], 3)))
        other.start()
        while server.server.front.in_flight < 2:
            time.sleep(0.01)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        content = "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)
        other.join()
        stopping.join()
        assert [content, waiting[0].choices[0].message.content] == want


def test_a_stopped_server_saves_its_sequences_where_asked(tmp_path: Path) -> None:
    """And one that waited for its row is sent away."""
    config = {"temperature": 1.0, "glimprouter": LONG}
    model = engines(max_sequences=1)
    with running(model, save_dir=tmp_path) as server:
        options: dict[str, Any] = {"stream": True, "extra_body": config}
        stream = server.chat(PROMPTS[0], 3, **options)
        first = next(stream)
        for _ in range(10):
            next(stream)
        waits = server.chat(PROMPTS[1], 3, **options)
        server.stop()
        with pytest.raises(openai.APIError, match="was saved as chatcmpl-"):
            list(stream)
        with pytest.raises(openai.APIError, match="the server stops"):
            list(waits)
    assert played(model, "large").under_way == 0
    (saved,) = tmp_path.iterdir()
    assert saved.stem == f"{first.id}-0"
    chat = [{"role": "user", "content": PROMPTS[0]}]
    (want,) = engines().generate([chat], 3, temperature=1.0, **LONG)
    (got,) = done(engines().resume([saved.read_bytes()]))
    assert got.text == want.text
    assert got.trace.seed == 3


def test_engines_that_cannot_serve_are_found_at_the_start() -> None:
    model = engines()
    played(model, "large").gate = False
    with pytest.raises(EngineRefused, match=r"large engine.* no gate"), running(model):
        pass
    model = engines()

    def refuse(_: int) -> None:
        raise EngineLost("connection refused")

    played(model, "small").fault = refuse
    with pytest.raises(EngineLost, match="small engine: connection refused"), running(model):
        pass


def test_logits_with_a_fault_end_one_sequence() -> None:
    model = engines()
    with running(model) as server:

        def spoil(logits: Any, request: EngineRequest) -> None:
            logits[0, 3] = math.nan

        played(model, "small").change = spoil
        with pytest.raises(openai.InternalServerError, match="logits with a fault"):
            server.chat(PROMPTS[0])
        played(model, "small").change = None
        want = alone(PROMPTS[0]).answer
        assert server.chat(PROMPTS[0]).choices[0].message.content == want


def test_a_run_that_fails_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected ends the sequences in flight, not the server, and is not told."""
    model = engines()
    with running(model) as server:
        engine: Any = server.server.front.engine
        run = engine._run

        def broken(*_: object) -> None:
            raise OSError(f"no such file: {__file__}")

        monkeypatch.setattr(run.mirror, "take", broken)
        with pytest.raises(openai.InternalServerError, match="the engine failed") as told:
            server.chat(PROMPTS[0])
        assert __file__ not in str(told.value)
        want = alone(PROMPTS[0]).answer
        assert server.chat(PROMPTS[0]).choices[0].message.content == want
        assert engine._run is not run


def test_a_loop_that_ends_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(engines()) as server:
        engine: Any = server.server.front.engine

        async def broken(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(engine._run, "astep", broken)
        monkeypatch.setattr(engine._model, "astream", broken)
        with pytest.raises(openai.InternalServerError, match=r"engine (has stopped|failed)"):
            server.chat(PROMPTS[0])
        while engine.alive:
            time.sleep(0.01)
        assert httpx.get(f"{server.url}/health").status_code == 503
        with pytest.raises(openai.InternalServerError, match="the engine has stopped"):
            server.chat(PROMPTS[0])
        assert server.server.front.in_flight == 0


def test_sequences_behind_a_stop_are_answered() -> None:
    told: list[Any] = []
    loop = EnginesLoop(engines(), told.extend)
    loop.start()
    loop.stop()
    loop.submit(7, Job("x", "Reduce 3,9", 0, 0))
    loop.join()
    loop.submit(8, Job("y", "Reduce 3,9", 0, 0))
    assert [ticket for ticket, own in told if getattr(own, "status", 0) == 503] == [7, 8]
    assert not loop.alive


def test_sequences_that_come_and_go_leave_nothing() -> None:
    """Many, cancelled at all sorts of moments, also before they have begun."""
    model = engines(max_sequences=3)
    told: list[Any] = []
    loop = EnginesLoop(model, told.extend)
    loop.start()
    for ticket in range(40):
        loop.submit(ticket, Job(str(ticket), PROMPTS[ticket % 5], 1, 0))
        if ticket % 3 == 0:
            loop.cancel(ticket)
        if ticket % 3 == 1:
            time.sleep(0.02 * (ticket % 4))
            loop.cancel(ticket)
    ends: dict[int, Any] = {}
    while len(ends) < 40:
        time.sleep(0.01)
        ends = {t: e.result for t, e in list(told) if getattr(e, "kind", "") == "done"}
    usage = loop.usage
    assert usage is not None
    assert (usage.running, usage.waiting) == (0, 0)
    reasons = [ends[ticket].trace.end_reason for ticket in range(40)]
    assert all(reasons[ticket] == "cancelled" for ticket in range(0, 40, 3))
    for ticket in range(2, 40, 3):
        want = alone(PROMPTS[ticket % 5])
        assert ends[ticket].text == want.text
    assert played(model, "small").under_way == played(model, "large").under_way == 0
    loop.stop()
    loop.join()
