"""Policies on engines that play vLLM, against RoutedModel: thresholds and coins."""

from __future__ import annotations

from typing import Any

import pytest

from glimprouter.policies import EntropyThreshold, Margin, RandomShare, WantedShare
from hf_pairs import trained_pair
from played_engines import played, same


@pytest.mark.parametrize("config", [{}, {"large_tokens": 2}, {"max_step_tokens": 3}], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_coins_fall_as_in_a_routed_model(share: float, config: dict[str, Any]) -> None:
    """In as many requests as entropies would take: the gate is told where the next one falls."""
    pair = trained_pair()
    model = pair.routed(**config)
    model.policy = RandomShare(share, seed=3)
    want = model.generate(pair.prompts, 11)
    client, small, large = played(pair, policy=RandomShare(share, seed=3), **config)
    same(client.generate(pair.prompts, 11), want)
    hard = sum(step.model == "large" for result in want for step in result.trace.steps)
    assert (hard > 0) == (share > 0.0)
    asked = len(small.requests) + len(large.requests) - 2
    assert asked <= 2 * hard + 2 * len(want)


@pytest.mark.parametrize("comparison", [">", ">="])
def test_a_threshold_as_a_policy(comparison: Any) -> None:
    pair = trained_pair()
    policy = EntropyThreshold(0.2, comparison)
    model = pair.routed()
    model.policy = policy
    want = model.generate(pair.prompts)
    client, _, _ = played(pair, policy=policy, threshold=5.0)
    same(client.generate(pair.prompts), want)


def test_policies_that_gates_cannot_follow() -> None:
    pair = trained_pair()
    with pytest.raises(ValueError, match="Margin is not for engines"):
        played(pair, policy=Margin(0.5))
    with pytest.raises(TypeError, match=r"glimprouter\.policies"):
        played(pair, policy="entropy")
    client, _, _ = played(pair, policy=RandomShare(0.5))
    with pytest.raises(ValueError, match="WantedShare is not for engines"):
        client.policy = WantedShare(0.5)
    assert isinstance(client.policy, RandomShare)
