"""Calls to a run in any order, wrong ones, and what comes in between: the others go on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import hf_pairs
from glimprouter.hf import Result, RoutedModel, Run, TokenCounts
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.kv import PagePool
from hf_pairs import ENGINE
from hf_runs import begun, finish, rewound, routed, sector_bytes, written
from hf_watch import poisoned

pytestmark = pytest.mark.both_engines


def small_arena(model: RoutedModel, prompts: list[Any]) -> int:
    """Bytes for the longest sequence and a little: the others are preempted."""
    sector = sector_bytes(model)
    for count in range(3, 100):
        model.kv_memory_bytes = count * sector
        with suppress(ValueError):
            model.stream(prompts)
            spare = 3 if model.translation is None else 12  # text may have more tokens than planned
            return (count + spare) * sector
    raise AssertionError("no arena holds the longest sequence")


@cache
def undisturbed(name: str, engine: str) -> list[str]:
    """What each prompt leads to; by engine, because each has its own rounding."""
    model, prompts = routed(name)
    assert model.engine == engine
    return [result.text for result in model.generate(prompts)]


@pytest.mark.parametrize("name", ["qwen3", "two tokenizers"])
@settings(
    deadline=None,
    max_examples=8,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a run is too slow to be shrunk
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_order_of_calls(name: str, data: st.DataObject) -> None:
    check_any_order(name, data)


@pytest.mark.both_engines("native", "paged")
@settings(
    deadline=None,
    max_examples=6,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_order_of_calls_of_models_with_states(data: st.DataObject) -> None:
    check_any_order("hybrid", data)


def check_any_order(name: str, data: st.DataObject) -> None:
    """All that stems from a prompt, in its stream, writes what the prompt writes undisturbed."""
    model, prompts = routed(name, max_sequences=4)
    if ENGINE.get() == "paged":
        model.kv_memory_bytes = small_arena(model, prompts)
    want = undisturbed(name, ENGINE.get())
    # Text that is read in another vocabulary has other tokens where it is read in other pieces.
    calls = [call for call in CALLS if call != "catch up" or model.translation is None]
    run = model.stream(prompts)
    origin = {index: index for index in range(len(prompts))}
    results: dict[int, Result] = {}
    for _ in range(data.draw(st.integers(5, 25), label="calls")):
        for _ in range(data.draw(st.integers(1, 9), label="passes")):
            for event in run.step():
                if event.result is not None:
                    results[event.sequence] = event.result
        flying = [index for index in run.sequences if run.generated(index)]
        if not flying:
            continue
        sequence = data.draw(st.sampled_from(flying), label="sequence")
        call = data.draw(st.sampled_from(calls), label="call")
        play(run, call, sequence, data, origin)
    results.update(finish(run))
    assert set(results) == set(origin)
    for index, result in results.items():
        if result.trace.end_reason == "cancelled":
            assert want[origin[index]].startswith(result.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        else:
            assert result.text == want[origin[index]], index


CALLS = ("fork", "rewind", "save and load", "catch up", "cancel")


def play(run: Run, call: str, sequence: int, data: Any, origin: dict[int, int]) -> None:
    """One call; what finds no row changes nothing."""
    before = (run.sequences, run.generated(sequence))
    full = ""
    try:
        if call == "fork":
            stream = run.trace(sequence).substream
            origin[run.fork(sequence, substream=stream)] = origin[sequence]
        elif call == "rewind":
            rewound(run, sequence, data.draw(st.integers(0, len(before[1])), label="count"))
        elif call == "save and load":
            origin[run.load(run.save(sequence))] = origin[sequence]
        elif call == "catch up":
            run.catch_up(sequence, data.draw(st.sampled_from(["small", "large"]), label="model"))
        elif len(run.sequences) > 2:
            run.cancel(sequence)
    except RuntimeError as error:
        full = str(error)
    if full:
        assert "rows of this run are in use" in full or "for the state of one sequence" in full
        assert (run.sequences, run.generated(sequence)) == before


def test_cancelled_before_and_after_its_begin() -> None:
    model, prompts = routed("qwen3", max_sequences=2)
    run = begun(model, prompts, 5)
    never = run.cancel(4)
    assert (never.token_ids, never.text, never.trace.end_reason) == ([], "", "cancelled")
    assert never.counts == dict.fromkeys(("small", "large"), TokenCounts(0, 0, 0))
    begun_one = run.cancel(0)
    assert begun_one.token_ids == run.generated(0) != []
    assert begun_one.trace.end_reason == "cancelled"
    assert sum(step.num_tokens for step in begun_one.trace.steps) == len(begun_one.token_ids)
    results = finish(run)
    assert sorted(results) == [0, 1, 2, 3, 4]
    want = [written(result) for result in model.generate(prompts)]
    for index in (1, 2, 3):
        assert results[index].token_ids == want[index][0]


def test_a_reader_of_events_sees_what_is_there() -> None:
    """Who drops text down to generated() after a rewind has the result's tokens in the end."""
    model, prompts = routed("qwen3")
    run = model.stream(prompts)
    read: dict[int, list[int]] = {index: [] for index in range(len(prompts))}
    results = {}
    for number, event in enumerate(run):
        if event.token_id is not None:
            read[event.sequence].append(event.token_id)
        if event.result is not None:
            results[event.sequence] = event.result.token_ids
        sequence = number % len(prompts)
        if number % 7 == 3 and sequence in run.sequences and run.generated(sequence):
            rewound(run, sequence, number % (1 + len(run.generated(sequence))) % 5)
            del read[sequence][len(run.generated(sequence)) :]
        if number > 1500:
            break
    assert read == results


def test_the_others_go_on_after_a_raise() -> None:
    """The sick sequence has its error and its result; the others end as ever."""
    model, prompts = routed("qwen3")
    want = [result.token_ids for result in model.generate(prompts)]
    run = model.stream(prompts)
    with (
        poisoned(model.small, 1, len(prompts[1]) + 9, float("nan")),
        pytest.raises(RuntimeError, match=r"sequence 1: the small model gave logits with a fault"),
    ):
        list(run)
    results = finish(run)
    assert results[1].trace.end_reason == "error"
    assert {i: r.token_ids for i, r in results.items() if i != 1} == {
        i: ids for i, ids in enumerate(want) if i != 1
    }


def test_interrupted_while_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the router's step: whoever has not been told of it is told at the next call."""
    model, prompts = routed("qwen3")
    want = [result.token_ids for result in model.generate(prompts)]
    run = begun(model, prompts, 6)
    original, calls = SequenceRecord.advance, [0]

    def interrupted(self: SequenceRecord, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)

    monkeypatch.setattr(SequenceRecord, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    results = finish(run)
    broken = [index for index, result in results.items() if result.trace.error]
    assert len(broken) == 1
    assert "interrupted" in str(results[broken[0]].trace.error)
    for index, ids in enumerate(want):
        if index not in broken:
            assert results[index].token_ids == ids


def test_steps_and_events_are_the_same() -> None:
    model, prompts = routed("qwen3")
    by_steps = []
    run = model.stream(prompts[:2])
    while events := run.step():
        by_steps += events
    assert run.step() == []
    by_events = list(model.stream(prompts[:2]))
    assert [(e.sequence, e.kind, e.token_id, e.text) for e in by_steps] == [
        (e.sequence, e.kind, e.token_id, e.text) for e in by_events
    ]


BAD: dict[str, tuple[Callable[[Run], object], type[Exception], str]] = {
    "no such": (lambda run: run.fork(9), IndexError, "there is no 9"),
    "negative": (lambda run: run.generated(-1), IndexError, "there is no -1"),
    "waits": (lambda run: run.rewind(3, 0), ValueError, "has not begun: it waits for one of 2"),
    "waits to be saved": (lambda run: run.save(3), ValueError, "has not begun"),
    "ended": (lambda run: run.cancel(0), ValueError, "sequence 0 has ended"),
    "ended fork": (lambda run: run.fork(0), ValueError, "sequence 0 has ended"),
    "rows": (lambda run: run.fork(1), RuntimeError, "all 2 rows of this run are in use"),
    "too many": (lambda run: run.rewind(1, 10**6), ValueError, "it has generated"),
    "fewer than none": (lambda run: run.rewind(1, -1), ValueError, "count must lie in"),
    "half a token": (lambda run: run.rewind(1, 0.5), TypeError, "count must be an integer"),  # type: ignore[arg-type]
    "no model": (lambda run: run.catch_up(1, "x"), ValueError, "model must be one of"),  # type: ignore[arg-type]
    "substream": (lambda run: run.fork(1, substream=-1), ValueError, "stream must lie in"),
    "no bytes": (lambda run: run.load("x"), TypeError, "is bytes, got str"),  # type: ignore[arg-type]
    "foreign": (lambda run: run.load(b"x" * 99), ValueError, "come from Run.save"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_change_nothing(name: str) -> None:
    call, error, message = BAD[name]
    model, prompts = routed("qwen3", max_sequences=2)
    run = begun(model, prompts[:4], 8)
    run.cancel(0)
    while not run.generated(2):  # it takes the row
        run.step()
    with pytest.raises(error, match=message):
        call(run)
    results = finish(run)
    want = [result.token_ids for result in model.generate(prompts[:4])]
    assert [results[index].token_ids for index in (1, 2, 3)] == want[1:]


def test_damaged_bytes_and_other_pairs_are_refused() -> None:
    model, prompts = routed("qwen3")
    saved = begun(model, prompts[:1], 10).save(0)
    for place in range(0, len(saved), len(saved) // 40):
        flipped = bytearray(saved)
        flipped[place] ^= 1
        for bad in (saved[:place], bytes(flipped)):
            with pytest.raises(ValueError, match=r"damaged or cut short|come from Run\.save"):
                model.resume([bad])
    other, _ = routed("trained")
    with pytest.raises(ValueError, match="another pair: the small model's"):
        other.resume([saved])
    assert finish(model.resume([saved]))[0].token_ids
    with pytest.raises(TypeError, match=r"for one sequence pass \[saved\]"):
        model.resume(saved)  # type: ignore[arg-type]


def test_bytes_of_the_other_engine_are_refused() -> None:
    model, prompts = routed("qwen3")
    saved = begun(model, prompts[:1], 10).save(0)
    other = "gather" if model.engine == "paged" else "paged"
    pair = hf_pairs.pair_of("qwen3")
    with pytest.raises(ValueError, match="make the RoutedModel with engine="):
        RoutedModel(pair.small, pair.large, pair.tokenizer, engine=other).resume([saved])  # type: ignore[arg-type]


def test_a_sequence_that_memory_cannot_hold_is_refused() -> None:
    """On pages; the gathering engine has no such limit."""
    model, prompts = routed("qwen3")
    saved = begun(model, prompts[:1], 10).save(0)
    model.kv_memory_bytes = 3 * PagePool.default_sector_bytes([kv_layout(model.small)])
    if model.engine == "gather":
        assert finish(model.resume([saved]))[0].token_ids
        return
    with pytest.raises(ValueError, match="cannot hold the longest sequence"):
        model.resume([saved])
