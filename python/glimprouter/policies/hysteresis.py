"""Two thresholds of the entropy: whoever writes goes on until the other one is clearly wanted."""

from __future__ import annotations

from glimprouter.config import ModelName, RouterConfig, check_integer
from glimprouter.policies.base import Glimpse, Policy


class Hysteresis(Policy):
    """``H_init > high`` changes to the large model, ``H_init <= low`` back to the small one.

    Between the two the writer of the step before goes on, so there are fewer hand-offs than with
    one threshold in the middle. The rule is that of a Schmitt trigger.
    """

    def __init__(self, low: float, high: float, *, warm_up: int = 0) -> None:
        """The rule; the first step is the small model's unless its entropy is above ``high``.

        Args:
            low: Nats, >= 0.
            high: Nats, at least ``low``.
            warm_up: Steps at the beginning of each chain that ``high`` alone decides, >= 0.

        Raises:
            TypeError: No numbers.
            ValueError: Out of range, or ``high < low``.
        """
        for threshold in (low, high):
            RouterConfig(threshold=threshold)  # the same checks
        if high < low:
            raise ValueError(f"high must be at least low, got low={low:g} and high={high:g}")
        check_integer("warm_up", warm_up, 0)
        self.low = low
        self.high = high
        self.warm_up = warm_up

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the entropy and the writer of the step before."""
        if glimpse.entropy > self.high:
            return "large"
        if glimpse.entropy <= self.low or glimpse.step < self.warm_up:
            return "small"
        return glimpse.previous or "small"
