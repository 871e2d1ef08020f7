"""The variance of the surprise of the first token."""

from __future__ import annotations

from glimprouter.config import ModelName, RouterConfig
from glimprouter.policies.base import Glimpse, Policy
from glimprouter.router import OutputField


class Varentropy(Policy):
    """The large model writes a step where ``Var(-ln p) > threshold``.

    ``V = sum p (ln p)^2 - H^2``, in square nats: small both where one token is sure and where all
    are alike, large where a few are likely among many.
    """

    signals = OutputField.VARENTROPY

    def __init__(self, threshold: float) -> None:
        """The rule.

        Args:
            threshold: Square nats, >= 0.

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        RouterConfig(threshold=threshold)  # the same checks
        self.threshold = threshold

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the varentropy."""
        return "large" if glimpse.varentropy > self.threshold else "small"
