"""Confidence of the first token: its largest probability against a threshold."""

from __future__ import annotations

from glimprouter.config import ModelName
from glimprouter.policies.base import Glimpse, Policy
from glimprouter.policies.checks import check_probability
from glimprouter.router import OutputField


class MaxProbability(Policy):
    """The large model writes a step where ``max p < threshold``.

    Maximum softmax probability is the usual baseline of confidence (Hendrycks and Gimpel, arXiv
    1610.02136), here of the first token of a step.
    """

    signals = OutputField.MAX_PROB

    def __init__(self, threshold: float) -> None:
        """The rule.

        Args:
            threshold: Probability in [0, 1]; 0 never goes to the large model.

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        check_probability("threshold", threshold)
        self.threshold = threshold

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the largest probability."""
        return "large" if glimpse.max_prob < self.threshold else "small"
