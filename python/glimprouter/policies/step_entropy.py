"""H_step: the small model drafts the step, and its mean entropy says whether it stays."""

from __future__ import annotations

from glimprouter.config import RouterConfig
from glimprouter.policies.base import WrittenStep
from glimprouter.policies.step_score import StepScore


class StepEntropy(StepScore):
    """The large model writes a step anew where ``H_step > threshold``.

    ``H_step = 1/N sum H_i`` over the N tokens of the step (arXiv 2601.05110, ablations: 46.67 % on
    AIME25 where ``H_init`` reaches 51.67 %, at an equal share of large steps). Every step is
    written by the small model first.
    """

    def __init__(self, threshold: float) -> None:
        """The rule.

        Args:
            threshold: Nats, >= 0.

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        RouterConfig(threshold=threshold)  # the same checks
        self.threshold = threshold

    def score(self, step: WrittenStep) -> float:
        """The mean entropy."""
        return step.mean_entropy

    def rejects(self, score: float) -> bool:
        """Above the threshold."""
        return score > self.threshold
