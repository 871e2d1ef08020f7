"""Forking, rewinding, saving, loading and cancelling in the middle of a run: nobody notices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import hf_pairs
import hf_translated
from glimprouter.hf import Result, RoutedModel, Run
from glimprouter.hf.paged_attention import kv_layout
from glimprouter.kv import PagePool
from hf_pairs import ENGINE

PAIRS = ("qwen3", "gemma3", "trained", "two tokenizers")
PLACES = (1, 26, 54)  # forward passes: in the thinking, at its end, in the answer
# A token that is computed again may be computed beside others: matrix products then round
# differently, as far as the model's own logits allow.
TOLERANCE = 1e-4


def routed(name: str, **options: Any) -> tuple[RoutedModel, list[Any]]:
    """A pair that draws its tokens, and its prompts."""
    config = {"temperature": 0.8, "max_think_tokens": 50, "max_answer_tokens": 8}
    if name == "two tokenizers":
        model = hf_translated.routed("gpt2", "qwen", **config, **options)
        return model, list(hf_translated.prompts("gpt2", "qwen"))
    pair = hf_pairs.pair_of(name)
    model = pair.routed(**config, max_batch_size=options.pop("max_batch_size", 64))
    model.kv_memory_bytes = options.pop("kv_memory_bytes", None)
    return model, pair.prompts


def finish(run: Run) -> dict[int, Result]:
    """The results of all sequences."""
    return {event.sequence: event.result for event in run if event.result is not None}


def written(result: Result) -> tuple[Any, ...]:
    """What must be the same to the bit, times aside."""
    steps = [(s.model, s.text, s.num_tokens, s.end_reason) for s in result.trace.steps]
    return result.token_ids, steps, result.answer, result.trace.end_reason


def entropies(result: Result) -> list[float | None]:
    return [step.entropy for step in result.trace.steps]


def begun(model: RoutedModel, prompts: list[Any], passes: int) -> Run:
    """A run in the middle."""
    run = model.stream(prompts)
    for _ in range(passes):
        run.step()
    return run


@pytest.mark.parametrize("passes", PLACES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_saved_sequence_goes_on_in_another_run(name: str, passes: int) -> None:
    model, prompts = routed(name)
    want = finish(model.stream(prompts[:1]))[0]
    run = begun(model, prompts[:1], passes)
    saved = run.save(0)
    resumed = finish(routed(name)[0].resume([saved]))[0]
    assert (written(resumed), entropies(resumed)) == (written(want), entropies(want))
    assert resumed.counts == want.counts
    kept = finish(run)[0]
    assert (written(kept), entropies(kept)) == (written(want), entropies(want))


@pytest.mark.parametrize("passes", PLACES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_fork_with_the_parents_stream_writes_the_same(name: str, passes: int) -> None:
    """Not to the bit where both are computed side by side; so the parent goes first."""
    model, prompts = routed(name)
    want = finish(model.stream(prompts[:1]))[0]
    run = begun(model, prompts[:1], passes)
    twin = run.fork(0, stream=0)
    saved = run.save(twin)
    run.cancel(twin)
    assert (twin, run.sequences) == (1, [0])
    parent = finish(run)[0]
    child = finish(model.resume([saved]))[0]
    for result in (parent, child):
        assert (written(result), entropies(result)) == (written(want), entropies(want))


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "two tokenizers"])
def test_forks_go_their_own_ways(name: str) -> None:
    """With streams of their own they differ; with the same one they do not."""
    model, prompts = routed(name)
    run = begun(model, prompts[:1], 12)
    past = run.generated(0)
    forks = [run.fork(0), run.fork(0), run.fork(0, stream=77), run.fork(0, stream=77)]
    assert len(past) > 5
    results = finish(run)
    assert sorted(results) == [0, *forks]
    texts = [results[index].text for index in (0, *forks)]
    assert len(set(texts[:4])) == 4
    assert texts[3] == texts[4]
    assert results[forks[2]].trace.stream == 77
    if name != "two tokenizers":
        assert all(result.token_ids[: len(past)] == past for result in results.values())


def rewound(run: Run, sequence: int, count: int) -> bool:
    """Whether it could be: the closing ids are appended as one, and nothing lies within them."""
    before = run.generated(sequence)
    message = ""
    try:
        run.rewind(sequence, count)
    except ValueError as error:
        message = str(error)
    if message:
        assert "inside the closing ids" in message
        assert run.generated(sequence) == before
    return not message


@pytest.mark.parametrize("passes", PLACES)
@pytest.mark.parametrize("name", PAIRS)
def test_rewound_it_writes_the_same_again(name: str, passes: int) -> None:
    """By none, one and several tokens, wherever that lies; again and again in one run."""
    model, prompts = routed(name)
    want = finish(model.stream(prompts[:1]))[0]
    for count in (0, 1, 6):
        run = begun(model, prompts[:1], passes)
        before = run.generated(0)
        if count > len(before):
            with pytest.raises(ValueError, match="it has generated"):
                run.rewind(0, count)
            count = len(before)
        if not rewound(run, 0, count):
            run.rewind(0, len(before))
            count = len(before)
        assert run.generated(0) == before[: len(before) - count]
        got = finish(run)[0]
        assert written(got) == written(want)
        for one, other in zip(entropies(got), entropies(want), strict=True):
            assert one == pytest.approx(other, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["qwen3", "trained"])
def test_rewound_within_a_step_the_bits_are_the_same(name: str) -> None:
    """Tokens that were computed one by one are computed one by one again."""
    model, prompts = routed(name)
    want = finish(model.stream(prompts[:1], route="small"))[0]
    for passes in range(3, 40, 4):
        run = model.stream(prompts[:1], route="small")
        for _ in range(passes):
            run.step()
        run.rewind(0, min(3, len(run.generated(0)) - 1))
        got = finish(run)[0]
        assert (written(got), entropies(got)) == (written(want), entropies(want))


def small_arena(model: RoutedModel, prompts: list[Any]) -> int:
    """Bytes for the longest sequence and a little: the others are preempted."""
    sector = PagePool.default_sector_bytes([kv_layout(model.small), kv_layout(model.large)])
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
    """All that stems from a prompt, in its stream, writes what the prompt writes undisturbed."""
    model, prompts = routed(name, max_batch_size=4)
    if ENGINE.get() == "paged":
        model.kv_memory_bytes = small_arena(model, prompts)
    want = undisturbed(name, ENGINE.get())
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
        call = data.draw(st.sampled_from(CALLS), label="call")
        play(run, call, sequence, data, origin)
    results.update(finish(run))
    assert set(results) == set(origin)
    for index, result in results.items():
        if result.trace.end_reason == "cancelled":
            assert want[origin[index]].startswith(result.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        else:
            assert result.text == want[origin[index]], index


CALLS = ("fork", "rewind", "save and load", "cancel")


def play(run: Run, call: str, sequence: int, data: Any, origin: dict[int, int]) -> None:
    """One call; what finds no row changes nothing."""
    before = (run.sequences, run.generated(sequence))
    full = ""
    try:
        if call == "fork":
            stream = run.trace(sequence).stream
            origin[run.fork(sequence, stream=stream)] = origin[sequence]
        elif call == "rewind":
            rewound(run, sequence, data.draw(st.integers(0, len(before[1])), label="count"))
        elif call == "save and load":
            origin[run.load(run.save(sequence))] = origin[sequence]
        elif len(run.sequences) > 2:
            run.cancel(sequence)
    except RuntimeError as error:
        full = str(error)
    if full:
        assert "rows of this run are in use" in full
        assert (run.sequences, run.generated(sequence)) == before


def test_cancelled_before_and_after_its_begin() -> None:
    model, prompts = routed("qwen3", max_batch_size=2)
    run = begun(model, prompts, 5)
    never = run.cancel(4)
    assert (never.token_ids, never.text, never.trace.end_reason) == ([], "", "cancelled")
    begun_one = run.cancel(0)
    assert begun_one.token_ids == run.generated(0) != []
    assert begun_one.trace.end_reason == "cancelled"
    assert sum(step.num_tokens for step in begun_one.trace.steps) == len(begun_one.token_ids)
    results = finish(run)
    assert sorted(results) == [0, 1, 2, 3, 4]
    want = [written(result) for result in model.generate(prompts)]
    for index in (1, 2, 3):
        assert results[index].token_ids == want[index][0]


def test_a_prompt_may_be_tried_many_times() -> None:
    """Best of n: one prefill, n draws."""
    model, prompts = routed("qwen3")
    run = model.stream(prompts[:1])
    while not run.generated(0):
        run.step()
    run.rewind(0, len(run.generated(0)))
    for _ in range(5):
        run.fork(0)
    results = finish(run)
    assert len({result.text for result in results.values()}) == 6


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
    "fewer than none": (lambda run: run.rewind(1, -1), ValueError, "cannot rewind"),
    "no bytes": (lambda run: run.load("x"), TypeError, "is bytes, got str"),  # type: ignore[arg-type]
    "foreign": (lambda run: run.load(b"x" * 99), ValueError, "come from Run.save"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_change_nothing(name: str) -> None:
    call, error, message = BAD[name]
    model, prompts = routed("qwen3", max_batch_size=2)
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


def test_bytes_of_the_other_engine_are_refused() -> None:
    model, prompts = routed("qwen3")
    saved = begun(model, prompts[:1], 10).save(0)
    other = "gather" if model.engine == "paged" else "paged"
    pair = hf_pairs.pair_of("qwen3")
    with pytest.raises(ValueError, match="make the RoutedModel with engine="):
        RoutedModel(pair.small, pair.large, pair.tokenizer, engine=other).resume([saved])  # type: ignore[arg-type]


def test_a_sequence_that_memory_cannot_hold_is_refused() -> None:
    model, prompts = routed("qwen3")
    if model.engine == "gather":
        pytest.skip("memory grows there")
    saved = begun(model, prompts[:1], 10).save(0)
    model.kv_memory_bytes = 3 * PagePool.default_sector_bytes([kv_layout(model.small)])
    with pytest.raises(ValueError, match="cannot hold the longest sequence"):
        model.resume([saved])
