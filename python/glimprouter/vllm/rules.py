"""Which policies engines can follow: those that a gate decides by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from glimprouter.policies import EntropyThreshold, Glimpse, Policy, RandomShare

# Whether the step of a sequence, by its seed, random key and index, is the large model's.
Coin: TypeAlias = Callable[[int, int, int], bool]


def check_policy(policy: Policy | None) -> None:
    """Refuses what a gate cannot decide.

    Raises:
        TypeError: No policy.
        ValueError: Another one.
    """
    if policy is None or type(policy) in (EntropyThreshold, RandomShare):
        return
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be one of glimprouter.policies, got {policy!r}")
    raise ValueError(
        f"the policy {policy.name} is not for engines: their gates decide by the entropy of the"
        " first token (EntropyThreshold) or by coins (RandomShare)"
    )


def options_of(policy: Policy | None) -> dict[str, Any]:
    """What a policy sets of the config."""
    if isinstance(policy, EntropyThreshold):
        return {"threshold": policy.threshold, "comparison": policy.comparison}
    return {}


def coin_of(policy: Policy | None) -> Coin | None:
    """The coins of a policy; None where entropies decide."""
    if not isinstance(policy, RandomShare):
        return None
    rule = policy

    def falls(seed: int, substream: int, step: int) -> bool:
        glimpse = Glimpse(seed, substream, step, position=0, previous=None, entropy=0.0)
        return rule.before(glimpse) == "large"

    return falls
