"""Shares of large steps: the threshold that gives a wanted one, and the interval of a measured one.

NumPy only. Entropies are float32 values, as the router compares them; so is every threshold that
comes out of here (as a Python float), which makes the shares exact and not nearly so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

Comparison: TypeAlias = Literal[">", ">="]
Entropies: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

RESAMPLES = 4000
_DRAWS_AT_ONCE = 1 << 18  # bounds the memory of the resampling
_TAIL = 0.025  # on each side of a 95 % interval
_Z = 1.959964  # that point of the normal distribution


class ShareInterval(NamedTuple):
    """A measured share in [0, 1] with its 95 % interval."""

    share: float
    low: float
    high: float


class FixedPoint(NamedTuple):
    """What :func:`find_fixed_point` settled on.

    Attributes:
        threshold: tau in nats.
        share: Share of ``steps`` above it in the run at this very threshold.
        steps: Glimpsed steps of that run, >= 1.
        rounds: Runs made, >= 1.
    """

    threshold: float
    share: float
    steps: int
    rounds: int


def share_above(entropies: Entropies, threshold: float, comparison: Comparison) -> float:
    """Share of the entropies that go to the large model, in [0, 1].

    Args:
        entropies: In nats, ascending, at least one.
        threshold: tau in nats, rounded to float32 as the router does.
        comparison: ``">"`` or ``">="``.
    """
    side: Literal["left", "right"] = "right" if comparison == ">" else "left"
    below = int(np.searchsorted(entropies, np.float32(threshold), side))
    return (len(entropies) - below) / len(entropies)


def threshold_for_share(entropies: Entropies, wanted: float, comparison: Comparison) -> float:
    """The threshold in nats whose share comes nearest to the wanted one; of two, the higher.

    The (1 - wanted) quantile, but never on an entropy that occurred: thresholds lie halfway between
    neighbouring values, so that a change in the last bit moves no step, and where many steps have
    the same entropy, all of them lie on the nearer side.

    Args:
        entropies: In nats, ascending, at least one.
        wanted: Share in (0, 1).
        comparison: ``">"`` or ``">="``.
    """
    edges = np.unique(np.concatenate([np.zeros(1, np.float32), entropies]))
    middles = edges[:-1] + (edges[1:] - edges[:-1]) / np.float32(2)
    top = np.nextafter(edges[-1], np.float32(np.inf))
    candidates = np.concatenate([edges[:1], middles, [top]])
    misses = [abs(share_above(entropies, tau, comparison) - wanted) for tau in candidates]
    # Shares are multiples of 1 / n: what differs by rounding only is a tie.
    best = min(misses) + 1e-12
    return float(candidates[max(i for i, miss in enumerate(misses) if miss <= best)])


def find_fixed_point(
    run: Callable[[int, float], Entropies],
    entropies: Entropies,
    wanted: float,
    comparison: Comparison,
    *,
    max_rounds: int,
    tolerance: float,
) -> FixedPoint:
    """Looks for a threshold that is the wanted quantile of the run that it routes itself.

    With Q(tau) the :func:`threshold_for_share` of a run routed at tau, the fixed point is
    tau = Q(tau). From Q of the given entropies on, tau moves to Q(tau); each time the direction
    changes, the moves are damped by another factor of two, so that a run that answers a higher
    threshold with much lower entropies does not swing for ever. The distance from the fixed point
    is the share of steps whose route differs between tau and Q(tau). It ends once that is at most
    the tolerance; when the rounds are used up, with the threshold of the least distance.

    Args:
        run: Gives the entropies, ascending, at least one, of round 1, 2, ... at a threshold.
        entropies: To start from, ascending, at least one.
        wanted: Share in (0, 1).
        comparison: ``">"`` or ``">="``.
        max_rounds: Calls of ``run``, >= 1.
        tolerance: Distance in [0, 1] that counts as none.
    """
    threshold = threshold_for_share(entropies, wanted, comparison)
    damping, last_move = 1.0, 0.0
    best, least = FixedPoint(threshold, 0.0, 0, 0), math.inf
    rounds = 0
    while rounds < max_rounds and least > tolerance:
        rounds += 1
        routed = run(rounds, threshold)
        share = share_above(routed, threshold, comparison)
        target = threshold_for_share(routed, wanted, comparison)
        distance = abs(share - share_above(routed, target, comparison))
        if distance < least:
            best, least = FixedPoint(threshold, share, len(routed), rounds), distance
        move = target - threshold
        if move * last_move < 0:
            damping /= 2
        last_move = move
        threshold = float(np.float32(threshold + damping * move))
    return best._replace(rounds=rounds)


def clustered_share(large: Sequence[int], steps: Sequence[int], seed: int) -> ShareInterval:
    """The share of all steps, with a 95 % interval that takes prompts, not steps, as independent.

    Percentile bootstrap over the prompts, widened as Student's t is over the normal distribution
    and by sqrt(n / (n - 1)), because n resampled prompts vary less than n fresh ones. Where every
    step went the same way resampling shows no spread; then the far end is that of n prompts as
    single trials (Clopper and Pearson).

    Args:
        large: Glimpsed steps of each prompt that the large model wrote.
        steps: All its glimpsed steps; prompts without any do not count.
        seed: Seed of the resampling, >= 0.

    Raises:
        ValueError: Fewer than two prompts with steps.
    """
    hits, totals = np.asarray(large, dtype=np.int64), np.asarray(steps, dtype=np.int64)
    hits, totals = hits[totals > 0], totals[totals > 0]
    count = len(totals)
    if count < 2:
        raise ValueError(f"an interval needs two prompts with glimpsed steps, got {count}")
    share = float(hits.sum() / totals.sum())
    single = float(_TAIL ** (1 / count))
    if share == 0.0:
        return ShareInterval(0.0, 0.0, 1.0 - single)
    if share == 1.0:
        return ShareInterval(1.0, single, 1.0)
    generator = np.random.default_rng(seed)
    resampled = np.empty(RESAMPLES)
    block = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        drawn = generator.integers(0, count, (rows, count))
        resampled[start : start + rows] = hits[drawn].sum(axis=1) / totals[drawn].sum(axis=1)
    wider = _student_over_normal(count - 1) * math.sqrt(count / (count - 1))
    resampled = share + (resampled - share) * wider
    low, high = np.quantile(resampled, [_TAIL, 1 - _TAIL]).clip(0.0, 1.0)
    return ShareInterval(share, min(float(low), share), max(float(high), share))


def _student_over_normal(freedom: int) -> float:
    """Ratio of the two 95 % points, by an expansion in 1 / freedom (Abramowitz, Stegun 26.7.5).

    From two degrees of freedom on it is right to 3 %; for one it gives three quarters of the ratio.
    """
    z, n = _Z, freedom
    terms = (
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return 1 + sum(terms) / z
