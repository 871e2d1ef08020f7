"""Events of a run: complete, in a sensible order, and the same as the results."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

import hf_pairs
from glimprouter.hf import Event, Result
from hf_pairs import Pair

pytestmark = pytest.mark.both_engines


@pytest.fixture(scope="module")
def pair() -> Pair:
    return hf_pairs.random_pair("llama")


def by_sequence(events: list[Event]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        found[event.sequence].append(event)
    return dict(found)


def result_of(events: list[Event]) -> Result:
    assert events[-1].kind == "done"
    result = events[-1].result
    assert result is not None
    return result


def steps_in_order(events: list[Event]) -> list[Any]:
    """Checks that routes, tokens and steps alternate as they must; returns the steps."""
    steps, open_route, tokens = [], None, 0
    for event in events:
        if event.kind == "answer_start":
            return steps
        if event.kind == "route":
            assert open_route is None, "a step is decided once"
            open_route = event
        elif event.kind == "token":
            tokens += 1
        elif event.kind == "step":
            step = event.step
            assert step is not None
            assert step.index == len(steps)
            assert (event.model, step.num_tokens) == (step.model, tokens)
            if open_route is not None:
                decided = (open_route.model, open_route.entropy, open_route.threshold)
                assert decided == (step.model, step.entropy, step.threshold)
            steps.append(step)
            open_route, tokens = None, 0
            if step.end_reason == "budget":
                tokens = -(10**6)  # closing ids belong to no step
    return steps


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize("sampled", [False, True])
def test_events_make_the_results(pair: Pair, batch: int, sampled: bool) -> None:
    options = {"temperature": 0.9 if sampled else 0.0, "max_sequences": batch}
    results = pair.routed(**options).generate(pair.prompts)
    streamed = by_sequence(list(pair.routed(**options).stream(pair.prompts)))
    assert sorted(streamed) == list(range(len(pair.prompts)))
    for index, result in enumerate(results):
        events = streamed[index]
        done = result_of(events)
        assert (done.token_ids, done.text, done.answer) == (
            result.token_ids,
            result.text,
            result.answer,
        )
        tokens = [event for event in events if event.kind == "token"]
        ids = [event.token_id for event in tokens if event.token_id is not None]
        assert ids == result.token_ids
        assert "".join(str(event.text) for event in tokens) == pair.tokenizer.decode(ids)
        assert steps_in_order(events) == done.trace.steps
        kinds = [event.kind for event in events]
        assert kinds.count("done") == kinds.count("answer_start") == 1
        assert kinds.count("step") == len(result.trace.steps) > 0


def test_the_answer_follows_its_start(pair: Pair) -> None:
    """Ids after answer_start are the answer's, and the answer model wrote them."""
    events = by_sequence(list(pair.routed(answer_model="large").stream(pair.prompts)))
    for index, of_one in events.items():
        start = next(i for i, event in enumerate(of_one) if event.kind == "answer_start")
        answer = [event for event in of_one[start + 1 :] if event.token_id is not None]
        result = result_of(of_one)
        assert {event.model for event in (of_one[start], *answer)} == {"large"}
        assert len(answer) == result.trace.answer_tokens == 8, index
        text = pair.tokenizer.decode([event.token_id for event in answer])
        assert result.answer == text.strip()


def test_trace_totals(pair: Pair) -> None:
    """Steps, closing ids and answer are all there is; the texts are those of the ids."""
    closing = pair.tokenizer.encode("\n</think>\n\n", add_special_tokens=False)
    for result in pair.routed().generate(pair.prompts):
        trace, start = result.trace, 0
        for step in trace.steps:
            ids = result.token_ids[start : start + step.num_tokens]
            assert step.text == pair.tokenizer.decode(ids)
            start += step.num_tokens
        assert result.token_ids[start : start + len(closing)] == closing
        assert start + len(closing) + trace.answer_tokens == trace.total_tokens
        assert trace.total_tokens == len(result.token_ids)
        assert all(step.seconds > 0 for step in trace.steps)
        assert trace.answer_seconds > 0


def test_more_prompts_than_slots_come_back_in_order(pair: Pair) -> None:
    """Sequences end at different times here, so that later prompts overtake earlier ones."""
    prompts = [*pair.prompts, *pair.prompts[::-1]]
    routed = pair.routed(max_sequences=3, max_step_tokens=1, repetition_guard=True)
    finished = [event.sequence for event in routed.stream(prompts) if event.kind == "done"]
    assert sorted(finished) == list(range(10))
    assert finished != sorted(finished), "nothing overtook"
    results = routed.generate(prompts)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == routed.generate([prompt])[0].token_ids


def test_no_prompts(pair: Pair) -> None:
    assert pair.routed().generate([]) == []
    assert list(pair.routed().stream([])) == []


def test_an_abandoned_stream_disturbs_nothing(pair: Pair) -> None:
    """Two streams of one model object, in turns, and a third that is dropped."""
    routed = pair.routed()
    want = [result.token_ids for result in routed.generate(pair.prompts[:2])]
    next(routed.stream(pair.prompts))
    runs = [routed.stream([prompt]) for prompt in pair.prompts[:2]]
    ids: list[list[int]] = [[], []]
    active = {0, 1}
    while active:
        for index in sorted(active):
            event = next(runs[index], None)
            if event is None:
                active.discard(index)
            elif event.token_id is not None:
                ids[index].append(event.token_id)
    assert ids == want


def test_the_trained_pair_streams_readable_text() -> None:
    pair = hf_pairs.trained_pair()
    routed = pair.routed(max_think_tokens=400, max_answer_tokens=60, max_step_tokens=512)
    for events in by_sequence(list(routed.stream(pair.prompts[:2]))).values():
        text = "".join(event.text or "" for event in events)
        assert text == pair.tokenizer.decode(result_of(events).token_ids)
        assert "\N{REPLACEMENT CHARACTER}" not in text
