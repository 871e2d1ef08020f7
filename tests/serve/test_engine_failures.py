"""The engine's thread when something fails: who is told, and what goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import glimprouter as gr
from glimprouter.hf.run.passes import ModelPasses
from glimprouter.serve.engine_thread import EngineThread
from glimprouter.serve.errors import Failure
from glimprouter.serve.jobs import Job
from hf_watch import poisoned
from serving import PROMPTS, Running, alone, new_pair, running


def test_a_pass_that_fails_now_and_then_is_computed_again() -> None:
    model = new_pair()
    calls = [0]

    def fail(*_: Any) -> None:
        calls[0] += 1
        if calls[0] in (20, 40, 41):
            raise MemoryError("no room for this pass")

    with running(model) as server:
        handle = model.small.model.layers[0].register_forward_pre_hook(fail)
        answer = server.chat(PROMPTS[0], 3)
        handle.remove()
        assert calls[0] > 41
        assert answer.choices[0].message.content == alone(PROMPTS[0], 3).answer


def test_passes_that_always_fail_end_their_sequences_and_not_the_server() -> None:
    model = new_pair()

    def fail(*_: Any) -> None:
        raise MemoryError(f"no room in {__file__}")

    with running(model) as server:
        handle = model.small.model.layers[0].register_forward_pre_hook(fail)
        with pytest.raises(openai.InternalServerError, match="the engine failed") as caught:
            server.chat(PROMPTS[0])
        assert __file__ not in str(caught.value)
        handle.remove()
        assert server.held() == (0, 0, 0, 0, 0)
        answer = server.chat(PROMPTS[0], 3)
        assert answer.choices[0].message.content == alone(PROMPTS[0], 3).answer


def test_logits_with_a_fault_end_one_sequence() -> None:
    model = new_pair()
    with running(model) as server:
        with (
            poisoned(model.small, 0, 60, float("nan")),
            pytest.raises(openai.InternalServerError, match="logits with a fault"),
        ):
            server.chat(PROMPTS[0])
        with poisoned(model.small, 0, 60, float("nan")):
            events = server.post(
                {
                    "model": "glimprouter",
                    "messages": [{"role": "user", "content": PROMPTS[0]}],
                    "stream": True,
                }
            )
        assert events.status_code == 200  # it had begun
        assert "logits with a fault" in events.text.split("data: ")[-2]
        assert 'status="500"} 2.0' in httpx.get(f"{server.url}/metrics").text
        assert server.held() == (0, 0, 0, 0, 0)


def test_a_thread_that_ends_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        engine = server.server.front.engine
        monkeypatch.setattr(engine, "_tell", _gone)
        with pytest.raises(openai.InternalServerError, match="the engine has stopped"):
            server.chat(PROMPTS[0])
        assert httpx.get(f"{server.url}/health").status_code == 503
        with pytest.raises(openai.InternalServerError, match="the engine has stopped"):
            server.chat(PROMPTS[0])
        assert server.server.front.in_flight == 0


def _gone(*_: object) -> None:
    raise SystemExit


def test_memory_that_is_too_small_is_said_at_the_start() -> None:
    engine = EngineThread(new_pair(kv_memory_bytes=1), lambda _: None)
    with pytest.raises(ValueError, match="kv_memory_bytes"):
        engine.start()
    assert not engine.alive


def test_a_sequence_that_memory_cannot_hold_is_refused() -> None:
    with running(new_pair(kv_memory_bytes=3_200_000)) as server:
        with pytest.raises(openai.BadRequestError, match="cannot hold the longest sequence"):
            server.chat(PROMPTS[0], extra_body={"glimprouter": {"max_think_tokens": 900}})
        assert _soon_idle(server)


def _soon_idle(server: Running) -> bool:
    while server.server.front.in_flight:
        time.sleep(0.01)
    return server.held()[:4] == (0, 0, 0, 0)


def test_a_prompt_that_is_read_while_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has ended when the sequence comes."""
    with running(save_dir=tmp_path) as server:
        engine, facts = server.server.front.engine, server.server._endpoints._facts
        encode = facts.encode_chat

        def stop_meanwhile(request: Any) -> Any:
            engine.stop()
            engine.join()
            return encode(request)

        monkeypatch.setattr(facts, "encode_chat", stop_meanwhile)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="stop") as caught:
                server.chat(PROMPTS[0], stream=stream)
            assert caught.value.status_code == 503
        assert server.server.front.in_flight == 0


def test_commands_behind_a_stop_are_answered() -> None:
    told: list[Any] = []
    engine = EngineThread(new_pair(), told.extend)
    engine.stop()
    engine.submit(7, Job("x", "Reduce 3,9", 0, 0))
    engine.start()
    engine.join()
    engine.submit(8, Job("y", "Reduce 3,9", 0, 0))
    assert [(ticket, failure.status) for ticket, failure in told] == [(7, 503), (8, 503)]


def test_a_device_that_is_lost_ends_the_engine_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not tried again: the process has to be started anew, which /health says, too."""
    passes: list[int] = []

    def fail(*_: Any) -> None:
        passes.append(1)
        raise gr.DeviceLost("cuda:0 is lost")

    monkeypatch.setattr(ModelPasses, "run", fail)
    told: list[Any] = []
    engine = EngineThread(new_pair(), told.extend)
    engine.submit(7, Job("x", "Reduce 3,9", 0, 0))
    engine.start()
    engine.join(60)
    assert not engine.alive
    assert len(passes) == 1
    failures = [(ticket, one.status) for ticket, one in told if isinstance(one, Failure)]
    assert failures == [(7, 500)]


def test_a_stream_that_cannot_begin_is_an_error_and_no_stream() -> None:
    with running(new_pair(kv_memory_bytes=3_200_000)) as server:
        routing = {"glimprouter": {"max_think_tokens": 900}}
        with pytest.raises(openai.BadRequestError, match="cannot hold the longest sequence"):
            server.chat(PROMPTS[0], stream=True, extra_body=routing)
        assert _soon_idle(server)
        assert 'status="400"' in httpx.get(f"{server.url}/metrics").text
