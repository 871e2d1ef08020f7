"""Result files of the published client: read whole, or refused with what was expected."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr
from glimprouter.trace import published_client
from trace_samples import client_record, client_records, trace, write_json


def read(tmp_path: Path, records: Any) -> gr.Trace:
    return published_client.read_published_client(write_json(tmp_path / "0.json", records))


def test_what_the_client_leaves(tmp_path: Path) -> None:
    got = read(tmp_path, client_records())
    assert [(s.index, s.model, s.entropy, s.text, s.num_tokens) for s in got.steps] == [
        (0, "small", 0.25, "Let x = 4.", 6),
        (1, "large", 1.25, "Then x² = 16.", 9),
        (2, "small", 0.75, "Done.</think>", 4),
    ]
    assert (got.answer, got.answer_model, got.answer_tokens) == ("\\boxed{16}", "large", 7)
    assert (got.total_tokens, got.end_reason, got.error) == (26, "finished", None)
    assert math.isnan(got.threshold)
    assert (got.prompt, got.seconds) == (None, 0.0)
    assert published_client.threshold_bounds(got) == (0.75, 1.25)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scores = st.none() | st.floats(0, 3) | st.just(-0.0)
entries = st.tuples(st.sampled_from(["small", "large"]), texts, st.integers(0, 512), scores)


@settings(max_examples=100, deadline=None)
@given(st.lists(entries, min_size=1, max_size=6), st.sampled_from(["finished", "budget"]), texts)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, str, int, float | None]],
    stop_reason: str,
    answer: str,
) -> None:
    """Whatever the texts, the empty one included: same writers, texts, counts, entropies."""
    records = [
        client_record(index, model, text, tokens, score=score)
        for index, (model, text, tokens, score) in enumerate(steps)
    ]
    records[-1]["stop_reason"] = stop_reason
    records.append(client_record(len(steps), "large", answer, 3, score=None, answer=False))
    path = tmp_path_factory.mktemp("client") / "0.json"
    got = published_client.read_published_client(write_json(path, records))
    assert [(s.model, s.text, s.num_tokens, s.entropy) for s in got.steps] == steps
    assert all(math.copysign(1.0, s.entropy) > 0 for s in got.steps if s.entropy is not None)
    assert (got.answer, got.end_reason) == (answer, stop_reason)
    assert got.total_tokens == sum(tokens for _, _, tokens, _ in steps) + 3
    # It can be kept as a trace of ours; NaN equals nothing, so both are compared as text.
    got.to_jsonl(path.with_suffix(".jsonl"))
    assert repr(gr.Trace.from_jsonl(path.with_suffix(".jsonl"))) == repr(got)


def test_both_models_wrote(tmp_path: Path) -> None:
    """Drafts that the large model replaced, and an empty replacement: a client that drafts."""
    both = client_record(0, "large", "kept", 5, small_model_step="draft", num_output_tokens_small=3)
    empty = client_record(1, "small", "kept", 5, base_model_step="")
    got = read(tmp_path, [both, {**empty, "stop_reason": "budget"}])
    assert [step.model for step in got.steps] == ["large", "small"]
    assert [step.num_tokens for step in got.steps] == [5, 5]


def test_without_an_answer(tmp_path: Path) -> None:
    got = read(tmp_path, client_records()[:3])
    assert (got.answer, got.answer_tokens, got.end_reason, got.error) == ("", 0, "finished", None)


def test_a_client_that_failed_on_the_way(tmp_path: Path) -> None:
    got = read(tmp_path, client_records()[:2])
    assert got.end_reason == "interrupted"
    assert "no step has stop_reason" in str(got.error)
    assert len(got.steps) == 2


def test_an_entropy_that_is_not_a_number(tmp_path: Path) -> None:
    """0 ln 0 in the client's sum; Python's json writes and reads it as NaN."""
    got = read(tmp_path, [client_record(0, "small", "a", 1, score=math.nan)])
    assert got.steps[0].entropy is None


def without(field: str) -> list[dict[str, Any]]:
    records = client_records()
    del records[1][field]
    return records


def changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    records = client_records()
    records[index].update(fields)
    return records


BAD: dict[str, tuple[Any, str]] = {
    "object": ({"steps": client_records()}, "expected a JSON list of objects, one a step, with"),
    "text": ("steps", "expected a JSON list"),
    "empty": ([], "holds no steps: the published client failed before its first"),
    "numbers": ([1, 2], "object 0 is 1; expected a JSON list of objects"),
    "other objects": ([{"role": "user"}], "object 0 lacks 'step_id'; expected a JSON list"),
    "score as text": (changed(1, score="1.2"), "object 1: 'score' must be an entropy .* '1.2'"),
    "score as bool": (changed(1, score=True), "'score' must be an entropy"),
    "negative score": (changed(1, score=-0.5), "'score' must be an entropy"),
    "endless score": (changed(1, score=10**400), "'score' must be an entropy"),
    "text as number": (changed(0, step_str=7), "object 0: 'step_str' must be text, got 7"),
    "text as null": (changed(0, step_str=None), "object 0: 'step_str' must be text, got None"),
    "step as list": (changed(0, base_model_step=["a"]), "'base_model_step' must be text or null"),
    "neither wrote": (changed(0, small_model_step=None), "one of 'small_model_step', 'base_model"),
    "half a token": (changed(0, final_num_output_tokens=1.5), "must be a whole number >= 0, got"),
    "no tokens": (changed(0, final_num_output_tokens=None), "must be a whole number >= 0, got No"),
    "negative tokens": (changed(0, num_output_tokens_small=-1), "a whole number >= 0 or null"),
    "reason as number": (changed(2, stop_reason=3), "object 2: 'stop_reason' must be text, got 3"),
    "justification": (changed(0, justification=1), "'justification' must be text or null"),
    "missing step": (client_records()[:1] + client_records()[2:], "'step_id' must be 1, got 2"),
    "repeated step": (client_records()[:1] * 2, "'step_id' must be 1, got 0"),
    "early stop": (changed(0, stop_reason="budget"), "at most the answer, got 3 objects, one more"),
    **{
        f"no {field}": (without(field), f"object 1 lacks '{field}'; expected")
        for field in client_record(0, "small", "", 0)
    },
}


@pytest.mark.parametrize(("records", "message"), BAD.values(), ids=BAD)
def test_what_is_refused(tmp_path: Path, records: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, records)
    assert str(tmp_path / "0.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "0.json", client_records())
    data = path.read_bytes()
    for length in range(len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"0\.json"):
            published_client.read_published_client(path)


NO_JSON = {
    "deep": "[" * 100_000,
    "endless number": "[" + "9" * 5000 + "]",
    "words": "[see the other file]",
}


@pytest.mark.parametrize("text", NO_JSON.values(), ids=NO_JSON)
def test_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"a\.json is no result .* it is not JSON"):
        published_client.parse_published_client(text, "a.json")


def test_formats_are_told_apart(tmp_path: Path) -> None:
    trace().to_jsonl(tmp_path / "ours")
    write_json(tmp_path / "theirs", client_records())
    with_mark = tmp_path / "marked"
    with_mark.write_text("\ufeff" + json.dumps(client_records()), encoding="utf-8")
    assert published_client.read_any_trace(tmp_path / "ours") == (trace(), "glimprouter")
    for name in ("theirs", "marked"):
        got, kind = published_client.read_any_trace(tmp_path / name)
        assert (len(got.steps), kind) == (3, "published_client")
    assert published_client.detect_format(" \n[", "x") == "published_client"
    for text, found in (
        ("", "is empty"),
        ("step 1", "begins with 's'"),
        ("\x1b[", r"begins with '\\x1b'"),
    ):
        with pytest.raises(ValueError, match=rf"x {found}; expected a trace of glimprouter"):
            published_client.detect_format(text, "x")


def test_bounds_of_tau() -> None:
    assert published_client.threshold_bounds(gr.Trace()) == (0.0, math.inf)
    assert published_client.threshold_bounds(trace()) == (0.25, 1.5)


WRONG_TYPES: dict[str, tuple[int, str, Any, str]] = {
    "writer": (1, "model", "medium", 'line 2, \'model\' must be "small" or "large"'),
    "writer as list": (1, "model", ["small"], "'model' must be"),
    "entropy": (2, "entropy", "1", "line 3, 'entropy' must be a finite number or null, got '1'"),
    "entropy NaN": (2, "entropy", math.nan, "'entropy' must be a finite number"),
    "entropy bool": (2, "entropy", True, "'entropy' must be a finite number"),
    "tau": (1, "threshold", None, "'threshold' must be a number >= 0"),
    "negative tau": (0, "threshold", -math.inf, "'threshold' must be a number >= 0"),
    "text": (1, "text", None, "'text' must be text"),
    "tokens": (1, "num_tokens", -3, "'num_tokens' must be a whole number"),
    "seconds": (1, "seconds", 10**400, "'seconds' must be a finite number >= 0"),
    "prompt": (0, "prompt", 5, "'prompt' must be text or null"),
    "answer": (-1, "answer", None, "'answer' must be text, got None"),
    "error": (-1, "error", {}, "'error' must be text or null"),
}


@pytest.mark.parametrize(
    ("line", "field", "value", "message"), WRONG_TYPES.values(), ids=WRONG_TYPES
)
def test_wrong_types_in_a_trace_of_ours(
    tmp_path: Path, line: int, field: str, value: Any, message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    trace().to_jsonl(path)
    records = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    records[line][field] = value
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        gr.Trace.from_jsonl(path)
