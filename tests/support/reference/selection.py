"""Token selection in float64: which tokens the filters keep, and which one a draw picks.

Order of the filters: temperature, top-k (exactly k tokens, ties by lower id), top-p over the
renormalised rest (smallest prefix in the order logit descending, id ascending, whose mass reaches
p), then min-p (probability at least min_p times the largest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Filters:
    """Sampling parameters; the defaults keep every token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def active(self) -> bool:
        """Returns whether any filter can drop a token."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True)
class KeptSet:
    """The tokens that the filters keep.

    margin is the smallest relative distance of a decision on real numbers (a prefix mass to p, a
    probability to the min-p threshold) from flipping; inf if no such decision was made. A float32
    implementation may differ from this set only where the margin is of the size of its rounding.
    """

    ids: IntArray  # [n], logit descending, id ascending
    probabilities: FloatArray  # [n], renormalised
    margin: float


def keep(row: NDArray[Any], filters: Filters) -> KeptSet:
    """Returns the kept tokens of one row [V]; -inf elements are never kept."""
    values = row.astype(np.float64)
    order = np.lexsort((np.arange(values.size), -values))
    order = order[np.isfinite(values[order])]
    if 0 < filters.top_k < order.size:
        order = order[: filters.top_k]
    weights = np.exp((values[order] - values[order[0]]) / filters.temperature)
    margin = np.inf
    size = order.size
    if filters.top_p < 1.0:
        prefix = np.cumsum(weights) / weights.sum()
        size = int(np.searchsorted(prefix, filters.top_p, side="left")) + 1
        margin = float(np.abs(prefix - filters.top_p).min()) / filters.top_p
    if filters.min_p > 0.0:
        ratio = weights[:size] / filters.min_p
        margin = min(margin, float(np.abs(ratio - 1.0).min()))
        size = int((ratio >= 1.0).sum())
    weights = weights[:size]
    return KeptSet(order[:size], weights / weights.sum(), margin)


def token_probabilities(row: NDArray[Any], filters: Filters) -> FloatArray:
    """Returns the probability [V] with which each token is drawn."""
    kept = keep(row, filters)
    probabilities = np.zeros(row.size, dtype=np.float64)
    probabilities[kept.ids] = kept.probabilities
    return probabilities


class InverseCdf:
    """Draws from one row: the first token whose prefix mass exceeds u.

    The prefix runs in id order without filters and in sorted order with them.
    """

    def __init__(self, row: NDArray[Any], filters: Filters) -> None:
        kept = keep(row, filters)
        order = slice(None) if filters.active() else np.argsort(kept.ids)
        self.margin = kept.margin
        self._ids = kept.ids[order]
        self._prefix = np.cumsum(kept.probabilities[order])

    def draw(self, u: float) -> tuple[int, float]:
        """Returns the token, and the distance of u from the nearer edge of its interval."""
        last = self._ids.size - 1
        index = min(int(np.searchsorted(self._prefix, u, side="right")), last)
        low = float(self._prefix[index - 1]) if index else -np.inf  # nothing left of the first
        high = float(self._prefix[index]) if index < last else np.inf
        return int(self._ids[index]), min(u - low, high - u)
