"""Engines behind a server that fail, and how such a server stops."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from glimprouter.serve import engines_loop
from glimprouter.serve.engines_loop import EnginesLoop
from glimprouter.serve.jobs import Job
from glimprouter.vllm import EngineLost, EngineRefused
from glimprouter.vllm.engines.base import EngineRequest
from serving import PROMPTS, metrics, running
from serving_engines import LONG, alone, done, engines, played


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


def test_an_engine_that_refuses_a_request() -> None:
    """That is said as it is: nothing would come of sending it again."""
    model = engines()

    def fault(_: int) -> None:
        raise EngineRefused("http://10.1.2.3:8002 answered 413")

    with running(model) as server:
        played(model, "large").fault = fault
        with pytest.raises(openai.InternalServerError, match="engine refused the") as told:
            server.chat(PROMPTS[1])
        assert told.value.status_code == 502
        assert "10.1.2.3" not in str(told.value)
        assert "later" not in str(told.value)


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
