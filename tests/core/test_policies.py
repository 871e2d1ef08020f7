"""The rules of policies against their formulas, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glimprouter as gr
from glimprouter.policies import (
    EntropyThreshold,
    Glimpse,
    Hysteresis,
    Margin,
    MaxProbability,
    Policy,
    RandomShare,
    Varentropy,
    WantedShare,
)

PROBABILITIES = st.floats(0, 1)
NATS = st.floats(0, 12)


def glimpse(entropy: float = 0.0, **others: Any) -> Glimpse:
    fields = {"seed": 1, "substream": 2, "step": 3, "position": 40, "previous": None, **others}
    return Glimpse(entropy=entropy, **fields)


def is_large(policy: Policy, *arguments: Any, **fields: Any) -> bool:
    writer = policy.before(glimpse(*arguments, **fields))
    assert writer in ("small", "large")
    return writer == "large"


@given(NATS, NATS)
def test_thresholds_of_the_entropy(entropy: float, threshold: float) -> None:
    entropy, threshold = (float(np.float32(value)) for value in (entropy, threshold))
    assert is_large(EntropyThreshold(threshold), entropy) == (entropy > threshold)
    assert is_large(EntropyThreshold(threshold, ">="), entropy) == (entropy >= threshold)
    assert is_large(EntropyThreshold(entropy, ">="), entropy)
    assert not is_large(EntropyThreshold(entropy), entropy)


@given(PROBABILITIES, PROBABILITIES, NATS)
def test_other_signals(value: float, threshold: float, entropy: float) -> None:
    """Each reads its own, and nothing else."""
    assert is_large(MaxProbability(threshold), entropy, max_prob=value) == (value < threshold)
    assert is_large(Margin(threshold), entropy, margin=value) == (value <= threshold)
    assert is_large(Varentropy(threshold), entropy, varentropy=value) == (value > threshold)
    for policy, field in (
        (MaxProbability(0.5), gr.OutputField.MAX_PROB),
        (Margin(0.5), gr.OutputField.MARGIN),
        (Varentropy(0.5), gr.OutputField.VARENTROPY),
        (EntropyThreshold(0.5), gr.OutputField.NONE),
    ):
        assert policy.signals == field


def test_a_threshold_is_that_of_the_router() -> None:
    """Kept in float32, as entropies are."""
    tie = float(np.float32(0.7))
    assert tie < 0.7
    assert is_large(EntropyThreshold(0.7, ">="), tie)
    assert not is_large(EntropyThreshold(0.7), tie)


def test_shares_at_the_ends() -> None:
    """Nothing, or everything, goes to the large model."""
    probabilities = [0.0, 0.3, 1.0]
    assert not any(is_large(MaxProbability(0), max_prob=p) for p in probabilities)
    assert all(is_large(Margin(1), margin=p) for p in probabilities)
    assert not any(is_large(EntropyThreshold(math.inf), p) for p in probabilities)
    assert not any(is_large(RandomShare(0), step=step) for step in range(200))
    assert all(is_large(RandomShare(1), step=step) for step in range(200))


@given(st.lists(NATS, min_size=1, max_size=40), NATS, NATS, st.integers(0, 3))
def test_hysteresis_keeps_its_writer(
    entropies: list[float], one: float, other: float, warm_up: int
) -> None:
    """But not in its warm-up, where the high threshold alone decides."""
    low, high = sorted((one, other))
    policy = Hysteresis(low, high, warm_up=warm_up)
    writer = None
    for step, entropy in enumerate(entropies):
        large = is_large(policy, entropy, previous=writer, step=step)
        if entropy > high:
            assert large
        elif entropy <= low or step < warm_up:
            assert not large
        else:
            assert large == (writer == "large")
        writer = "large" if large else "small"


def test_a_coin_follows_from_its_keys() -> None:
    """Whatever was asked before; another key, another coin."""
    seeds = (0, 1, 2**64 - 1)
    keys = [(seed, sub, step) for seed in seeds for sub in (0, 7) for step in range(500)]

    def fall(policy: Policy, order: list[Any]) -> dict[Any, bool]:
        return {
            key: is_large(policy, **dict(zip(("seed", "substream", "step"), key, strict=True)))
            for key in order
        }

    first = fall(RandomShare(0.3, seed=5), keys)
    assert fall(RandomShare(0.3, seed=5), keys[::-1]) == first
    assert fall(RandomShare(0.3, seed=6), keys) != first
    share = np.mean(list(first.values()))
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(keys))
    for seed in seeds:  # no stream of coins is another one's
        streams = [[first[seed, sub, step] for step in range(500)] for sub in (0, 7)]
        assert streams[0] != streams[1]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.8, 1.0])
def test_a_wanted_share_is_obtained(share: float) -> None:
    """Of entropies of any scale, after the warm-up; also once they drift."""
    generator = np.random.default_rng(3)
    policy = WantedShare(share, start=1.0, warm_up=50, window=500)
    for scale in (0.1, 30.0):
        entropies = scale * generator.exponential(size=3000)
        for entropy in entropies[:600]:
            policy.before(glimpse(entropy))
        large = [is_large(policy, entropy) for entropy in entropies[600:]]
        assert abs(np.mean(large) - share) < 0.03


def test_a_wanted_share_stays_within_its_bounds() -> None:
    policy = WantedShare(0.5, warm_up=2, low=0.4, high=0.6)
    for entropy in (0.0, 0.1, 0.2):
        policy.before(glimpse(entropy))
    assert policy.threshold == 0.4
    for entropy in (2.0, 2.1, 2.2, 2.3, 2.4):
        policy.before(glimpse(entropy))
    assert policy.threshold == 0.6


def test_until_the_warm_up_a_wanted_share_is_a_threshold() -> None:
    policy = WantedShare(0.5, start=2.0, warm_up=4)
    assert [is_large(policy, entropy) for entropy in (1.9, 2.1, 0.0, 5.0)] == [0, 1, 0, 1]
    assert policy.threshold == np.quantile([1.9, 2.1, 0.0, 5.0], 0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EntropyThreshold(-1.0), ValueError, "threshold"),
        (lambda: EntropyThreshold("1"), TypeError, "threshold must be a number"),  # type: ignore[arg-type]
        (lambda: EntropyThreshold(1.0, "<"), ValueError, "comparison"),  # type: ignore[arg-type]
        (lambda: Hysteresis(2.0, 1.0), ValueError, "high must be at least low"),
        (lambda: Hysteresis(math.nan, 1.0), ValueError, "threshold"),
        (lambda: Hysteresis(0.5, 1.0, warm_up=-1), ValueError, "warm_up"),
        (lambda: Hysteresis(0.5, 1.0, warm_up=0.5), TypeError, "warm_up"),  # type: ignore[arg-type]
        (lambda: MaxProbability(1.1), ValueError, r"threshold must lie in \[0, 1\]"),
        (lambda: Margin(math.nan), ValueError, r"threshold must lie in \[0, 1\]"),
        (lambda: Margin(True), TypeError, "must be a number"),
        (lambda: Varentropy(-0.1), ValueError, "threshold"),
        (lambda: RandomShare(-0.1), ValueError, r"share must lie in \[0, 1\]"),
        (lambda: RandomShare(0.1, seed=-1), ValueError, "seed must lie"),
        (lambda: RandomShare(0.1, seed=1.5), TypeError, "seed must be an integer"),  # type: ignore[arg-type]
        (lambda: WantedShare(2.0), ValueError, r"share must lie in \[0, 1\]"),
        (lambda: WantedShare(0.2, start=-1.0), ValueError, "threshold"),
        (lambda: WantedShare(0.2, warm_up=0), ValueError, "warm_up"),
        (lambda: WantedShare(0.2, low=2.0, high=1.0), ValueError, "high must be at least low"),
        (lambda: WantedShare(0.2, warm_up=9, window=8), ValueError, "window"),
    ],
)
def test_what_makes_no_sense_is_refused(
    make: Callable[[], Policy], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
