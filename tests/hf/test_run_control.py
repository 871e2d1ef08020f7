"""Saving, forking and rewinding in the middle of a step: it is written as it would have been."""

from __future__ import annotations

from collections import Counter

import pytest

from glimprouter.hf.engine.paged import PagedEngine
from hf_pairs import random_pair
from hf_runs import begun, entropies, finish, rewound, routed, uninterrupted, written
from hf_watch import watched

pytestmark = pytest.mark.both_engines

PAIRS = ("qwen3", "gemma3", "trained", "two tokenizers")
PLACES = (1, 26, 54)  # forward passes: in the thinking, at its end, in the answer
TOLERANCE = 1e-4  # of an entropy whose token was computed beside others than before


@pytest.mark.parametrize("passes", PLACES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_saved_sequence_goes_on_in_another_run(name: str, passes: int) -> None:
    model, prompts = routed(name)
    want = uninterrupted(name)
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
    want = uninterrupted(name)
    run = begun(model, prompts[:1], passes)
    twin = run.fork(0, substream=0)
    saved = run.save(twin)
    run.cancel(twin)
    assert (twin, run.sequences) == (1, [0])
    parent = finish(run)[0]
    child = finish(model.resume([saved]))[0]
    for result in (parent, child):
        assert (written(result), entropies(result)) == (written(want), entropies(want))


def test_a_fork_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a row, nor a count in the keys of the forks to come."""
    model, prompts = routed("qwen3")
    run, other = begun(model, prompts[:1], 12), begun(model, prompts[:1], 12)
    rows = run._sequences.router.state(0)
    with monkeypatch.context() as patch:
        patch.setattr(type(run._sequences.engine), "fork", _refuse)
        with pytest.raises(MemoryError):
            run.fork(0)
    assert run.sequences == [0]
    assert run._sequences.router.state(0) == rows
    keys = [each.trace(each.fork(0)).substream for each in (run, other)]
    assert keys[0] == keys[1]


def _refuse(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "two tokenizers"])
def test_forks_go_their_own_ways(name: str) -> None:
    """With streams of their own they differ; with the same one they do not."""
    model, prompts = routed(name)
    run = begun(model, prompts[:1], 12)
    past = run.generated(0)
    forks = [run.fork(0), run.fork(0), run.fork(0, substream=77), run.fork(0, substream=77)]
    assert len(past) > 5
    results = finish(run)
    assert sorted(results) == [0, *forks]
    texts = [results[index].text for index in (0, *forks)]
    assert len(set(texts[:4])) == 4
    assert texts[3] == texts[4]
    assert results[forks[2]].trace.substream == 77
    if name != "two tokenizers":
        assert all(result.token_ids[: len(past)] == past for result in results.values())


@pytest.mark.parametrize("passes", PLACES)
@pytest.mark.parametrize("name", PAIRS)
def test_rewound_it_writes_the_same_again(name: str, passes: int) -> None:
    """By none, one and several tokens, wherever that lies; again and again in one run."""
    model, prompts = routed(name)
    want = uninterrupted(name)
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
        assert (written(got), entropies(got)) == (written(want), entropies(want))


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "two tokenizers"])
def test_rewound_wherever_the_bits_are_the_same(name: str) -> None:
    """From every pass on, by a count that goes round: through catch-ups, glimpses and decisions.

    With two tokenizers a model may have computed text that was tokenized again behind it; what it
    computes instead is beside others than before.
    """
    model, prompts = routed(name)
    want = uninterrupted(name)
    tolerance = TOLERANCE if name == "two tokenizers" else 0
    for passes in range(2, 50, 5):
        run = begun(model, prompts[:1], passes)
        if not rewound(run, 0, min(passes % 8, len(run.generated(0)))):
            continue
        got = finish(run)[0]
        assert written(got) == written(want), passes
        assert entropies(got) == pytest.approx(entropies(want), abs=tolerance, rel=0), passes


def test_rewound_by_the_least_the_tokens_are_the_same() -> None:
    """Only the last token is computed again, beside fewer than before."""
    model, prompts = routed("qwen3")
    want = uninterrupted("qwen3")
    for passes in range(2, 50, 5):
        run = begun(model, prompts[:1], passes)
        run.rewind(0, min(passes % 8, len(run.generated(0))), exact=False)
        with watched(model.small) as small, watched(model.large) as large:
            run.step()
        assert len(small) + len(large) <= 1 + len(prompts[0]) + passes
        got = finish(run)[0]
        assert written(got) == written(want)
        assert entropies(got) == pytest.approx(entropies(want), abs=TOLERANCE)


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_computed_after_a_rewind(exact: bool) -> None:
    """To the very start: the prompt as a whole, or its last token."""
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:1], 9)
    run.rewind(0, len(run.generated(0)), exact=exact)
    with watched(model.small) as small, watched(model.large) as large:
        run.step()
    want = prompts[0] if exact else prompts[0][-1:]
    assert [token.token for token in small] == want
    assert large == []


def test_a_prompt_may_be_tried_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Best of n: one prefill, n draws."""
    model, prompts = routed("qwen3")
    run = model.stream(prompts[:1])
    while not run.generated(0):
        run.step()
    run.rewind(0, len(run.generated(0)), exact=False)
    for _ in range(15):
        run.fork(0)
    preempted: list[int] = []
    monkeypatch.setattr(PagedEngine, "preempt", lambda _, record: preempted.append(record.index))
    with watched(model.small) as small:
        results = finish(run)
    assert len({result.text for result in results.values()}) == 16
    assert preempted == []
    assert Counter(token.position for token in small)[len(prompts[0]) - 1] == 16
    assert min(token.position for token in small) == len(prompts[0]) - 1


@pytest.mark.parametrize(
    ("front", "message"),
    [
        (
            b"GRRUN\x01\r\n",
            "of another version of glimprouter: its format is 01, this one reads 06",
        ),
        (b"GRRUN", "of another version of glimprouter: its format is cut off"),
        (b"GGUF", "are not a saved sequence"),
    ],
)
def test_a_saved_sequence_of_another_version_is_refused(front: bytes, message: str) -> None:
    routed = random_pair("qwen3").routed()
    with pytest.raises(ValueError, match=message):
        routed.resume([front + bytes(100) if front != b"GRRUN" else front])


# On caches of the models' own: recurrent layers; windows, which forget; keys and values of all.
OWN_CACHES = ("hybrid", "gemma3", "qwen3")


@pytest.mark.both_engines("native")
@pytest.mark.parametrize("passes", PLACES)
@pytest.mark.parametrize("name", OWN_CACHES)
def test_own_caches_are_saved_forked_and_rewound(name: str, passes: int) -> None:
    test_a_saved_sequence_goes_on_in_another_run(name, passes)
    test_a_fork_with_the_parents_stream_writes_the_same(name, passes)
    test_rewound_it_writes_the_same_again(name, passes)


@pytest.mark.both_engines("native")
@pytest.mark.parametrize("name", OWN_CACHES[:2])
def test_own_caches_come_to_the_same_bits(name: str) -> None:
    """What is computed again is computed in the same pieces."""
    test_rewound_wherever_the_bits_are_the_same(name)
    test_forks_go_their_own_ways(name)


@pytest.mark.both_engines("paged")
@pytest.mark.parametrize("passes", PLACES)
def test_states_beside_pages_are_saved_forked_and_rewound(passes: int) -> None:
    test_own_caches_are_saved_forked_and_rewound("hybrid", passes)


@pytest.mark.both_engines("paged")
def test_states_beside_pages_come_to_the_same_bits() -> None:
    test_own_caches_come_to_the_same_bits("hybrid")
