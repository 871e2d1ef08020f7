"""H_step: the small model drafts the step, and its mean entropy says whether it stays."""

from __future__ import annotations

from glimprouter.config import ModelName, RouterConfig
from glimprouter.policies.base import Glimpse, Policy, Verdict, WrittenStep


class StepEntropy(Policy):
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

    def before(self, glimpse: Glimpse) -> ModelName:
        """The small model drafts."""
        return "small"

    def after(self, step: WrittenStep) -> Verdict:
        """By the mean entropy."""
        return "rewrite" if step.mean_entropy > self.threshold else "keep"
