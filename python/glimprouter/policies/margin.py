"""ARI's rule on the first token: the margin of the two largest probabilities."""

from __future__ import annotations

from glimprouter.config import ModelName
from glimprouter.policies.base import Glimpse, Policy
from glimprouter.policies.checks import check_probability
from glimprouter.router import OutputField


class Margin(Policy):
    """The large model writes a step where ``p1 - p2 <= threshold``.

    ARI (arXiv 2408.14528) keeps the result of a reduced model where the margin of its two top
    scores exceeds T, with T from calibration; here the scores are the probabilities of the first
    token, and the larger model is another one.
    """

    signals = OutputField.MARGIN

    def __init__(self, threshold: float) -> None:
        """The rule.

        Args:
            threshold: T in [0, 1]; at 1 everything goes to the large model.

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        check_probability("threshold", threshold)
        self.threshold = threshold

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the margin."""
        return "large" if glimpse.margin <= self.threshold else "small"
