"""Answers from several depths: each is what a run of that budget comes to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from glimprouter.chains import FracturedSampling, fractured_sampling, majority
from glimprouter.hf import RoutedModel
from hf_pairs import pair_of
from hf_runs import routed


def greedy(max_sequences: int = 64) -> RoutedModel:
    """The trained pair, and the same tokens whatever the key."""
    return pair_of("trained").routed(
        temperature=0.0, max_think_tokens=60, max_answer_tokens=8, max_sequences=max_sequences
    )


def test_each_is_what_a_budget_of_its_prefix_comes_to() -> None:
    model, prompt = greedy(), pair_of("trained").prompts[0]
    whole = model.generate([prompt])[0]
    length = sum(step.num_tokens for step in whole.trace.steps)
    sampling = fractured_sampling(model, prompt, chains=2, depths=5)
    places = [(fracture.chain, fracture.depth) for fracture in sampling.fractures]
    assert places == [(chain, depth) for chain in range(2) for depth in range(1, 6)]
    for fracture in sampling.fractures:
        assert fracture.prefix == fracture.depth * length // 5
        want = whole
        if fracture.depth < 5:
            want = model.generate([prompt], max_think_tokens=fracture.prefix)[0]
        assert fracture.result.token_ids == want.token_ids
        alone = len(want.token_ids) - (fracture.prefix if fracture.depth < 5 else 0)
        assert fracture.written == alone
    deepest = sorted(sampling.fractures, key=lambda fracture: -fracture.depth)
    assert sampling.vote == majority(fracture.result.answer for fracture in deepest)
    assert sampling.vote_of(1, [5]) == majority([whole.answer])


def test_no_prefix_is_computed_twice() -> None:
    """Each model computes what is written, and the token before each cut again."""
    model, prompt = greedy(), pair_of("trained").prompts[0]
    model.drafts = 0
    computed: Counter[str] = Counter()

    def counted(depths: int) -> tuple[dict[str, int], FracturedSampling]:
        computed.clear()
        sampling = fractured_sampling(model, prompt, chains=1, depths=depths)
        return dict(computed), sampling

    def count(name: str) -> Any:
        def hook(_: object, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            computed[name] += named.get("input_ids", arguments[0] if arguments else None).numel()

        return hook

    parts = {"small": model.small, "large": model.large}
    hooks = [
        part.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, part in parts.items()
    ]
    alone, _ = counted(1)
    six, sampling = counted(6)
    for hook in hooks:
        hook.remove()
    others = sampling.fractures[:-1]
    assert sampling.fractures[-1].prefix > 20
    assert [len(others), sum(other.prefix for other in others) > 100] == [5, True]
    # The large model writes their answers; it reads the token before each, and what it had read
    # before the chain's own answer is what that answer's first logits need again.
    written = sum(other.written for other in others)
    assert six["large"] - alone["large"] <= written + len(others) + 1
    assert six["small"] - alone["small"] <= len(others)


def test_draws_differ_between_chains_and_answers_and_are_the_same_again() -> None:
    model, prompts = routed("qwen3", max_sequences=7)  # two chains of three at a time
    first = fractured_sampling(model, prompts[0], chains=3, depths=1, answers=3, seed=5)
    again = fractured_sampling(model, prompts[0], chains=3, depths=1, answers=3, seed=5)
    ids = [tuple(fracture.result.token_ids) for fracture in first.fractures]
    assert ids == [tuple(fracture.result.token_ids) for fracture in again.fractures]
    assert len(first.fractures) == 9
    assert len(set(ids)) > 3


def test_what_it_refuses() -> None:
    model, prompts = routed("qwen3", max_sequences=4)
    with pytest.raises(ValueError, match=r"5 depths x 1 answers = 5 sequences"):
        fractured_sampling(model, prompts[0], depths=5)
    with pytest.raises(ValueError, match="chains must lie in"):
        fractured_sampling(model, prompts[0], chains=0)
    with pytest.raises(TypeError, match="answers must be an integer"):
        fractured_sampling(model, prompts[0], answers=1.5)  # type: ignore[arg-type]
