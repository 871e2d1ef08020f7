"""The same endpoint in front of two engines that play vLLM: texts, options, queue, what is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from serving import PROMPTS, Running, metrics, reasoning_of, running
from serving_engines import LONG, alone, engines, played


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(engines()) as own:
        yield own


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
