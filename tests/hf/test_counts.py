"""No model computes a token twice, and none computes a token that it did not have to see."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import hf_pairs
from glimprouter.hf import Event
from hf_pairs import FAMILIES, Pair
from hf_watch import Computed, watched

pytestmark = pytest.mark.both_engines

FORCED_CLOSE = ("budget", "repetition")


def by_sequence(pair: Pair, computed: list[Computed]) -> dict[int, list[tuple[int, int]]]:
    """(position, id) by prompt; the prompts that share a slot differ in their first id."""
    current: dict[int, int] = {}
    found: dict[int, list[tuple[int, int]]] = {index: [] for index in range(len(pair.prompts))}
    for slot, position, token in computed:
        if position == 0:
            current[slot] = token - pair.prompts[0][0]
        found[current[slot]].append((position, token))
    return found


def needed_lengths(pair: Pair, events: list[Event]) -> dict[str, list[int]]:
    """Tokens that each model must see of each sequence: up to the last logits asked of it.

    A glimpse or a token at position n asks for the n tokens before it; closing ids ask for nothing.
    """
    needed = {model: [0] * len(pair.prompts) for model in ("small", "large")}
    lengths = [len(prompt) for prompt in pair.prompts]
    closing = [False] * len(pair.prompts)
    for event in events:
        index = event.sequence
        if event.kind == "route":
            needed["small"][index] = lengths[index]
        elif event.kind == "step":
            closing[index] = event.step is not None and event.step.end_reason in FORCED_CLOSE
        elif event.kind == "answer_start":
            closing[index] = False
        elif event.kind == "token" and event.token_id is not None:
            if not closing[index]:
                needed[str(event.model)][index] = lengths[index]
            lengths[index] += 1
    return needed


def check_run(pair: Pair, **options: Any) -> Counter[str]:
    """Runs all prompts; returns how many steps each model wrote, and the tokens computed."""
    with watched(pair.small) as small, watched(pair.large) as large:
        events = list(pair.routed(**options).stream(pair.prompts))
    results = {event.sequence: event.result for event in events if event.result is not None}
    needed = needed_lengths(pair, events)
    totals: Counter[str] = Counter()
    for name, computed in (("small", small), ("large", large)):
        for index, seen in by_sequence(pair, computed).items():
            ids = pair.prompts[index] + results[index].token_ids
            length = needed[name][index]
            want = list(enumerate(ids[:length]))
            assert seen == want, f"{name} model, sequence {index}: each token once, in order"
            totals[f"{name} tokens"] += len(seen)
    for result in results.values():
        totals.update(step.model for step in result.trace.steps)
        totals["hand-offs"] += sum(
            first.model != second.model
            for first, second in zip(result.trace.steps, result.trace.steps[1:], strict=False)
        )
    return totals


@pytest.mark.parametrize("family", FAMILIES)
def test_many_hand_offs_in_a_ragged_batch(family: str) -> None:
    pair = hf_pairs.random_pair(family)
    totals = check_run(pair, max_think_tokens=150)
    print(f"{family}: {dict(totals)}")
    assert totals["hand-offs"] >= 20


def test_models_of_different_families() -> None:
    """The small model has no window, the large one has."""
    totals = check_run(hf_pairs.random_pair("llama", "gemma3"), answer_model="small")
    assert totals["hand-offs"] >= 10


@pytest.mark.parametrize("batch", [1, 2])
def test_slots_used_again(batch: int) -> None:
    """More prompts than slots: what the one before left in a slot counts for nothing."""
    totals = check_run(hf_pairs.random_pair("qwen3"), max_sequences=batch)
    assert totals["hand-offs"] >= 10


@pytest.mark.parametrize("reason", ["budget", "repetition"])
def test_closing_ids_are_computed_by_the_answer_model_alone(reason: str) -> None:
    options = {"budget": {"max_think_tokens": 20}, "repetition": {"max_step_tokens": 1}}[reason]
    check_run(
        hf_pairs.random_pair("qwen3"),
        repetition_guard=reason == "repetition",
        answer_model="small",
        **options,
    )


def test_a_model_that_is_not_needed_computes_nothing() -> None:
    pair = hf_pairs.random_pair("qwen3")
    assert check_run(pair, route="small", answer_model="small")["large tokens"] == 0
    assert check_run(pair, route="large")["small tokens"] == 0
    assert check_run(pair, threshold=float("inf"), max_answer_tokens=0)["large tokens"] == 0
