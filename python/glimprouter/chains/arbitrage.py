"""Arbitrage with an oracle: both models write the step, and the better one stays."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glimprouter.chains.candidate_rule import CandidateRule, Choice
from glimprouter.policies import WrittenStep
from glimprouter.policies.checks import check_function, check_score
from glimprouter.policies.reward import RewardFunction


class ArbitrageOracle(CandidateRule):
    """Keeps the large model's step where ``score(large) - score(small) > tau``.

    Arbitrage (arXiv 2512.05033) goes to the large model where its step would have an advantage in
    reward; its oracle writes both steps to know. That costs more than either model alone: it says
    what the learned form (:class:`glimprouter.policies.LearnedRouter`) could reach.
    """

    def __init__(self, score: RewardFunction, tau: float = 0.0) -> None:
        """The rule.

        Args:
            score: Gets the user's message (None for a chat, or raw ids), the texts of the steps
                before, and that of a step; gives a finite number.
            tau: Advantage that the large model's step must exceed.

        Raises:
            TypeError: ``score`` cannot be called, or tau is no number.
            ValueError: tau is NaN.
        """
        check_function("score", score)
        check_score("tau", tau)
        self.score = score
        self.tau = tau

    def choose(self, drafts: Sequence[WrittenStep]) -> Choice | None:
        """The large model writes the step, too."""
        return None

    def settle(self, drafts: Sequence[WrittenStep], large: WrittenStep) -> Choice:
        """By the advantage of the large model's step.

        Raises:
            TypeError: A score that is no number.
            ValueError: One that is not finite.
        """
        scores = []
        for step in (*drafts, large):
            value = self.score(step.question, step.previous, step.text)
            check_score("a score", value)
            if not math.isfinite(value):
                raise ValueError(f"a score must be finite, got {value!r}")
            scores.append(float(value))
        return Choice(None if scores[-1] - scores[0] > self.tau else 0, scores)

    def compared(self, choice: Choice) -> float:
        """The advantage of the large model's step."""
        return choice.scores[-1] - choice.scores[0] if len(choice.scores) > 1 else math.nan
