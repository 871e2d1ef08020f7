"""Rules that compare one number of each step that the small model has written."""

from __future__ import annotations

import math
from abc import abstractmethod

from glimprouter.config import ModelName
from glimprouter.policies.base import Glimpse, Judgement, Policy, Verdict, WrittenStep


class StepScore(Policy):
    """The small model writes every step first; its score says whether it stays.

    Score and decision are apart, and the trace has both (``TraceStep.score``).
    """

    def before(self, glimpse: Glimpse) -> ModelName:
        """The small model drafts."""
        return "small"

    def after(self, step: WrittenStep) -> Verdict | Judgement:
        """By the score, of steps that may be rewritten."""
        if not step.rewritable:
            return "keep"
        score = self.score(step)
        verdict: Verdict = "rewrite" if self.rejects(score) else "keep"
        return Judgement(verdict, score) if math.isfinite(score) else verdict

    @abstractmethod
    def score(self, step: WrittenStep) -> float:
        """The number that is compared."""

    @abstractmethod
    def rejects(self, score: float) -> bool:
        """Whether the large model writes a step with this score anew."""
