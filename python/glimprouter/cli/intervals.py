"""95 % intervals for what the demo measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959964  # two-sided 95 % point of the normal distribution
RESAMPLES = 4000


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


def proportion(successes: int, trials: int) -> Interval:
    """Wilson's score interval for a share.

    Raises:
        ValueError: No trials.
    """
    if trials < 1:
        raise ValueError(f"a share needs at least one trial, got {trials}")
    share = successes / trials
    scale = 1 + Z * Z / trials
    center = (share + Z * Z / (2 * trials)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    return Interval(share, max(0.0, center - half), min(1.0, center + half))


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Difference of two shares over the same problems (Agresti and Min 2005: Wald with two added).

    Only the problems that one of the two solved and the other did not carry information.

    Args:
        first: Solved or not, a problem each.
        second: The same problems, in the same order.

    Raises:
        ValueError: No problems, or unequal lengths.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"need the same problems twice, got {len(first)} and {len(second)}")
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    trials = len(first) + 2
    difference = (gained - lost) / trials  # a half is added to both, which cancels
    variance = (gained + lost + 1 - trials * difference * difference) / (trials * trials)
    half = Z * math.sqrt(max(variance, 0.0))
    estimate = (gained - lost) / len(first)
    return Interval(estimate, max(-1.0, difference - half), min(1.0, difference + half))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Geometric mean of ratios with a percentile bootstrap over the pairs (seeded).

    Raises:
        ValueError: No pairs, unequal lengths, or a value that is not positive.
    """
    if not numerators or len(numerators) != len(denominators):
        raise ValueError(f"need pairs, got {len(numerators)} and {len(denominators)}")
    if min(*numerators, *denominators) <= 0:
        raise ValueError("ratios need positive values")
    logs = np.log(np.asarray(numerators)) - np.log(np.asarray(denominators))
    draws = np.random.default_rng(0).integers(0, len(logs), (RESAMPLES, len(logs)))
    low, high = np.quantile(logs[draws].mean(axis=1), [0.025, 0.975])
    return Interval(math.exp(logs.mean()), math.exp(low), math.exp(high))
