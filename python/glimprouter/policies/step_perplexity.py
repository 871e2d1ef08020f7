"""PPL_step: the small model drafts the step, and its perplexity says whether it stays."""

from __future__ import annotations

from glimprouter.config import ModelName
from glimprouter.policies.base import Glimpse, Policy, Verdict, WrittenStep
from glimprouter.policies.checks import check_at_least


class StepPerplexity(Policy):
    """The large model writes a step anew where ``PPL_step > threshold``.

    ``PPL_step = exp(-1/N sum ln p_i)`` over the N tokens of the step, p at temperature 1 (arXiv
    2601.05110, ablations: 47.50 % on AIME25 where ``H_init`` reaches 51.67 %, at an equal share of
    large steps). Every step is written by the small model first.
    """

    def __init__(self, threshold: float) -> None:
        """The rule.

        Args:
            threshold: At least 1, the perplexity of a step without any doubt.

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        check_at_least("threshold", threshold, 1.0)
        self.threshold = threshold

    def before(self, glimpse: Glimpse) -> ModelName:
        """The small model drafts."""
        return "small"

    def after(self, step: WrittenStep) -> Verdict:
        """By the perplexity."""
        return "rewrite" if step.perplexity > self.threshold else "keep"
