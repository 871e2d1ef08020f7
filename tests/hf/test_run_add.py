"""Prompts that join a run while it computes: each is written as if it were alone."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from glimprouter.hf import Result, Run
from hf_pairs import ENGINE
from hf_runs import finish, routed, sector_bytes, written

pytestmark = pytest.mark.both_engines

PAIRS = ("qwen3", "trained", "two tokenizers")
# What a sequence may have of its own, beside its seed.
OWN: tuple[dict[str, Any], ...] = (
    {},
    {"route": "small"},
    {"threshold": 0.1, "temperature": 0.0},
    {"max_think_tokens": 7, "max_answer_tokens": 3, "top_p": 0.5},
    {"route": "large", "max_think_tokens": 20},
    {"comparison": ">=", "top_k": 3, "first_steps_large": 2, "max_step_tokens": 4},
    {"answer_model": "small", "min_p": 0.2},
)


@cache
def alone(name: str, engine: str, prompt: int, seed: int, own: int) -> Result:
    """What a prompt leads to in a run of its own."""
    model, prompts = routed(name)
    assert model.engine == engine
    return model.generate([prompts[prompt]], seeds=[seed], **OWN[own])[0]


def held(run: Run) -> tuple[Any, ...]:
    """What is left of sequences that have ended: nothing of it may grow."""
    sequences = run._sequences
    memory = run.usage().memory
    used = None if memory is None else memory.bytes_used
    waiting = run.usage().running + run.usage().preempted + run.usage().waiting
    rows = [len(sequences.router.pending(model)) for model in ("small", "large")]
    return used, waiting, rows, len(sequences.engine._sequences), len(sequences._records)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", PAIRS)
def test_prompts_join_and_leave_at_random_moments(name: str, seed: int) -> None:
    """More of them than rows; some are cancelled, also before they begin or when preempted."""
    model, prompts = routed(name, max_sequences=4)
    if ENGINE.get() == "paged" and name != "two tokenizers":
        model.kv_memory_bytes = 24 * sector_bytes(model)
    draw = random.Random(seed)
    run = model.stream([])
    want, results = {}, {}
    empty = held(run)
    left = 16
    while left or run.sequences:
        while left and draw.random() < 0.2:
            prompt, own = draw.randrange(3), draw.randrange(len(OWN))
            key = draw.randrange(2)
            index = run.add(prompts[prompt], key, substream=0, **OWN[own])
            want[index] = (name, ENGINE.get(), prompt, key, own)
            left -= 1
        if run.sequences and draw.random() < 0.006:
            run.cancel(draw.choice(run.sequences))
        for event in run.step():
            if event.result is not None:
                results[event.sequence] = event.result
                run.release(event.sequence)
    assert list(want) == list(range(16)) == sorted(results)
    assert held(run) == empty
    ended = [result.trace.end_reason for result in results.values()]
    assert 0 < ended.count("cancelled") < 10
    for index, result in results.items():
        expected = alone(*want[index])
        if result.trace.end_reason == "cancelled":
            assert expected.text.startswith(result.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        else:
            assert written(result) == written(expected), want[index]


def test_a_prompt_alone_has_index_and_stream_0() -> None:
    model, prompts = routed("qwen3")
    run = model.stream([])
    assert list(run) == []
    assert run.add(prompts[1], 5) == 0
    assert written(finish(run)[0]) == written(model.generate([prompts[1]], seeds=[5])[0])
    assert run.add(prompts[1], 5) == 1  # another stream, as in a list of prompts
    pair = model.generate([prompts[0], prompts[1]], seeds=[5, 5])
    assert written(finish(run)[1]) == written(pair[1])


def test_what_the_run_has_set_holds_unless_the_prompt_says_otherwise() -> None:
    model, prompts = routed("qwen3")
    run = model.stream(prompts[:1], max_answer_tokens=2, max_think_tokens=9)
    run.add(prompts[1], max_think_tokens=5)
    traces = [result.trace for _, result in sorted(finish(run).items())]
    assert [(t.think_limit, t.answer_limit) for t in traces] == [(9, 2), (5, 2)]


def test_a_released_sequence_is_forgotten_and_its_index_is_not_given_again() -> None:
    model, prompts = routed("qwen3")
    run = model.stream(prompts[:2])
    with pytest.raises(ValueError, match="sequence 0 has not ended; cancel it first"):
        run.release(0)
    run.cancel(1)
    run.release(1)
    with pytest.raises(IndexError, match="sequence 1 was released"):
        run.trace(1)
    with pytest.raises(IndexError, match="sequence 1 was released"):
        run.release(1)
    with pytest.raises(IndexError, match="this run has 2 sequences, there is no 2"):
        run.generated(2)
    assert run.add(prompts[1]) == 2
    assert sorted(finish(run)) == [0, 1, 2]  # the event of the cancelled one was unread


def test_a_run_says_what_it_holds() -> None:
    model, prompts = routed("qwen3", max_sequences=2)
    run = model.stream([])
    for prompt in prompts[:4]:
        run.add(prompt)
    before = run.usage()
    assert (before.rows, before.running, before.preempted, before.waiting) == (2, 0, 0, 4)
    run.step()
    usage = run.usage()
    assert (usage.running, usage.waiting) == (2, 2)
    if ENGINE.get() == "paged":
        assert usage.memory is not None
        assert before.memory is not None
        assert 0 == before.memory.bytes_used < usage.memory.bytes_used < usage.memory.bytes
    else:
        assert usage.memory is None


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "unknown option": (TypeError, "unknown option 'drafts'", {"drafts": 3}),
    "manual": (ValueError, 'route="manual" needs', {"route": "manual"}),
    "seed": (ValueError, "seed must lie in", {"seed": -1}),
    "no seed": (TypeError, "seed must be an integer, got None", {"seed": None}),
    "stream": (ValueError, "substream must lie in", {"substream": 2**64}),
    "temperature": (ValueError, "temperature must lie in", {"temperature": -1.0}),
    "no room": (ValueError, "max_think_tokens=5000 does not fit", {"max_think_tokens": 5000}),
    "prompt": (ValueError, "the prompt is empty", {"prompt": []}),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused_changes_nothing(case: str) -> None:
    error, message, arguments = WRONG[case]
    model, prompts = routed("qwen3")
    run = model.stream([])
    with pytest.raises(error, match=message):
        run.add(**{"prompt": prompts[0], **arguments})
    assert (run.sequences, run.usage().waiting) == ([], 0)
    assert run.add(prompts[0]) == 0
    assert written(finish(run)[0]) == written(model.generate(prompts[:1])[0])


@pytest.mark.both_engines("paged")
def test_a_prompt_that_the_arena_cannot_hold_is_refused(pages_of_16: None) -> None:
    model, prompts = routed("qwen3")
    model.kv_memory_bytes = 4 * sector_bytes(model)
    run = model.stream([])
    with pytest.raises(ValueError, match="cannot hold the longest sequence"):
        run.add(prompts[0], max_think_tokens=1000)
    assert run.sequences == []
    run.add(prompts[4], max_think_tokens=5, max_answer_tokens=2)
    assert finish(run)[0].trace.error is None
