"""A threshold that follows the entropies seen, so that a wanted share of steps goes large."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from glimprouter.config import ModelName, RouterConfig, check_integer
from glimprouter.policies.base import Glimpse, Policy
from glimprouter.policies.checks import check_probability


class WantedShare(Policy):
    """``H_init`` above the ``1 - share`` quantile of the last entropies goes to the large model.

    RouteLLM (arXiv 2406.18665) sets a threshold from a wanted share on recorded data; this does it
    while a run goes on. The rule remembers what it saw, of all sequences and runs that ask it: who
    is asked first matters, so two runs of another order may decide otherwise.
    """

    def __init__(
        self,
        share: float,
        *,
        start: float = 1.0,
        warm_up: int = 32,
        low: float = 0.0,
        high: float = math.inf,
        window: int = 4096,
    ) -> None:
        """The rule.

        Args:
            share: Of the steps that the large model writes, in [0, 1].
            start: Threshold until ``warm_up`` glimpses have been seen, nats.
            warm_up: Glimpses, >= 1.
            low: Least threshold after that, nats.
            high: Largest, at least ``low``.
            window: Glimpses that are remembered, at least ``warm_up``.

        Raises:
            TypeError: A value of another type.
            ValueError: One out of range.
        """
        check_probability("share", share)
        for threshold in (start, low, high):
            RouterConfig(threshold=threshold)  # the same checks
        if high < low:
            raise ValueError(f"high must be at least low, got low={low:g} and high={high:g}")
        check_integer("warm_up", warm_up, 1)
        check_integer("window", window, warm_up)
        self.share = share
        self.start = start
        self.warm_up = warm_up
        self.low, self.high = low, high
        self._seen: deque[float] = deque(maxlen=window)

    @property
    def threshold(self) -> float:
        """Tau in force, nats."""
        if len(self._seen) < self.warm_up:
            return self.start
        return min(max(float(np.quantile(self._seen, 1.0 - self.share)), self.low), self.high)

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the entropy, which is remembered."""
        large = glimpse.entropy > self.threshold
        unbounded = self.low == 0.0 and self.high == math.inf
        if len(self._seen) >= self.warm_up and self.share in (0.0, 1.0) and unbounded:
            large = self.share == 1.0  # no quantile is above, or below, everything
        self._seen.append(glimpse.entropy)
        return "large" if large else "small"
