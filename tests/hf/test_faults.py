"""Invalid logits and interrupts: one sequence's trouble stays its own, and nothing is lost."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import glimprouter as gr
import hf_pairs
from hf_pairs import Pair
from hf_watch import calling, poisoned, spoiled_embeddings

pytestmark = pytest.mark.both_engines

SICK = 2  # the sequence that is poisoned
AFTER = 15  # generated tokens before it is
FAULTS = {"nan": math.nan, "pos inf": math.inf, "all neg inf": -math.inf}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return hf_pairs.random_pair("qwen3")


def poisoned_length(pair: Pair) -> int:
    return len(pair.prompts[SICK]) + AFTER


@pytest.mark.parametrize("value", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("model", ["small", "large"])
def test_end_ends_that_sequence_alone(pair: Pair, model: str, value: float) -> None:
    want = pair.routed(route=model).generate(pair.prompts)
    with poisoned(pair.model(model), SICK, poisoned_length(pair), value):
        got = pair.routed(route=model, on_invalid="end").generate(pair.prompts)
    for index, (result, healthy) in enumerate(zip(got, want, strict=True)):
        if index != SICK:
            assert result.token_ids == healthy.token_ids
            assert (result.trace.error, result.trace.end_reason) == (None, "answer_budget")
    sick = got[SICK]
    assert sick.token_ids == want[SICK].token_ids[:AFTER]
    assert sick.trace.end_reason == "error"
    assert sick.trace.error is not None
    assert f"sequence {SICK}" in sick.trace.error
    assert f"the {model} model" in sick.trace.error
    assert sum(step.num_tokens for step in sick.trace.steps) == AFTER


@pytest.mark.parametrize("value", FAULTS.values(), ids=FAULTS)
def test_raise_names_the_sequence_and_the_fault(pair: Pair, value: float) -> None:
    with (
        poisoned(pair.small, SICK, poisoned_length(pair), value),
        pytest.raises(RuntimeError, match=rf"sequence {SICK}: the small model .* {AFTER} tokens"),
    ):
        pair.routed(route="small").generate(pair.prompts)


def test_an_error_event_comes_before_done(pair: Pair) -> None:
    with poisoned(pair.small, SICK, poisoned_length(pair), math.nan):
        events = list(pair.routed(route="small", on_invalid="end").stream(pair.prompts))
    kinds = [event.kind for event in events if event.sequence == SICK]
    assert kinds[-2:] == ["error", "done"]
    assert kinds.count("error") == 1
    assert all(event.sequence == SICK for event in events if event.kind == "error")


def test_a_slot_is_clean_after_a_sequence_of_nan(pair: Pair) -> None:
    """NaN in keys and values would reach the next sequence of the slot through the mask's zeros."""
    prompts = [pair.prompts[2], pair.prompts[0], pair.prompts[4], pair.prompts[1]]
    want = pair.routed(route="small", answer_model="small").generate(prompts)
    routed = pair.routed(route="small", answer_model="small", on_invalid="end", max_sequences=2)
    with spoiled_embeddings(pair.small, first_id=prompts[0][0]):
        got = routed.generate(prompts)
    assert got[0].trace.end_reason == "error"
    assert [r.token_ids for r in got[1:]] == [r.token_ids for r in want[1:]]


class Interrupt:
    """Raises KeyboardInterrupt before the forward pass number `after`."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, call: int) -> None:
        if call == self.after:
            raise KeyboardInterrupt


def check_partial(trace: gr.Trace, whole: gr.Trace) -> None:
    """The steps so far are those of the whole run; the last one may be unfinished."""
    assert trace.end_reason == "interrupted"
    assert 0 < trace.total_tokens < whole.total_tokens
    assert len(trace.steps) >= 2
    *finished, last = trace.steps
    for got, want in zip(finished, whole.steps, strict=False):
        assert (got.model, got.text, got.num_tokens) == (want.model, want.text, want.num_tokens)
        # A watched model runs its own code, which rounds otherwise than the native pass.
        assert got.entropy == pytest.approx(want.entropy, abs=1e-4)
        assert got.end_reason == want.end_reason
    want = whole.steps[len(finished)]
    assert want.text.startswith(last.text)
    assert last.end_reason in ("interrupted", want.end_reason)
    assert sum(step.num_tokens for step in trace.steps) == trace.total_tokens


@pytest.mark.parametrize("name", ["small", "large"])
def test_an_interrupted_generate_leaves_its_trace(pair: Pair, tmp_path: Path, name: str) -> None:
    """Whichever model was at work; the model object then serves the next call as if new."""
    routed, path = pair.routed(), tmp_path / "trace.jsonl"
    whole = routed.generate(pair.prompts[:1])[0]
    with calling(pair.model(name), Interrupt(after=14)), pytest.raises(KeyboardInterrupt):
        routed.generate(pair.prompts[:1], trace_path=path)
    trace = gr.Trace.from_jsonl(path)
    check_partial(trace, whole.trace)
    assert routed.generate(pair.prompts[:1])[0].token_ids == whole.token_ids


def test_a_whole_run_writes_its_trace(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    result = pair.routed().generate(pair.prompts[:1], trace_path=path)[0]
    assert gr.Trace.from_jsonl(path) == result.trace
    with pytest.raises(ValueError, match="trace_path takes one prompt, got 2"):
        pair.routed().generate(pair.prompts[:2], trace_path=path)


def test_an_interrupted_answer_is_in_the_trace(pair: Pair, tmp_path: Path) -> None:
    options = {"route": "small", "answer_model": "large", "max_think_tokens": 10}
    whole = pair.routed(**options).generate(pair.prompts[:1])[0]
    path = tmp_path / "trace.jsonl"
    with calling(pair.large, Interrupt(after=4)), pytest.raises(KeyboardInterrupt):
        pair.routed(**options).generate(pair.prompts[:1], trace_path=path)
    trace = gr.Trace.from_jsonl(path)
    assert (trace.end_reason, trace.answer_tokens) == ("interrupted", 4)
    assert whole.trace.answer_tokens > 4
    assert trace.total_tokens == whole.trace.total_tokens - whole.trace.answer_tokens + 4
    timeless = [[(s.text, s.end_reason) for s in t.steps] for t in (trace, whole.trace)]
    assert timeless[0] == timeless[1]


def test_an_interrupted_stream_keeps_all_traces(pair: Pair) -> None:
    """Also of the prompts that still wait: nothing is known of them but the prompt."""
    routed = pair.routed(max_sequences=2)
    whole = routed.generate(pair.prompts)
    run = routed.stream(pair.prompts)
    with calling(pair.small, Interrupt(after=24)), pytest.raises(KeyboardInterrupt):
        list(run)
    for index in (0, 1):
        check_partial(run.trace(index), whole[index].trace)
    waiting = run.trace(4)
    assert (waiting.total_tokens, waiting.steps, waiting.substream) == (0, [], 4)
    assert waiting.end_reason == "interrupted"
    assert [r.token_ids for r in routed.generate(pair.prompts)] == [r.token_ids for r in whole]


def test_a_trace_in_the_middle_changes_nothing(pair: Pair) -> None:
    """Looking at an unfinished step does not end it."""
    routed = pair.routed()
    whole = routed.generate(pair.prompts[:2])
    run, results, unfinished = routed.stream(pair.prompts[:2]), {}, 0
    for event in run:
        partial = run.trace(event.sequence)
        unfinished += any(step.end_reason == "interrupted" for step in partial.steps)
        if event.result is not None:
            results[event.sequence] = event.result
            assert partial == event.result.trace
    assert unfinished > 20
    for index, result in enumerate(whole):
        assert results[index].token_ids == result.token_ids
        got, want = results[index].trace, result.trace
        assert [(s.text, s.end_reason) for s in got.steps] == [
            (s.text, s.end_reason) for s in want.steps
        ]
        assert (got.end_reason, got.answer) == (want.end_reason, want.answer)
