"""RSD: a process reward model scores the small model's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from glimprouter.policies.base import WrittenStep
from glimprouter.policies.checks import check_function, check_score
from glimprouter.policies.step_score import StepScore

RewardFunction: TypeAlias = Callable[[str | None, Sequence[str], str], float]


class Reward(StepScore):
    """The large model writes a step anew where ``r(question, steps, step) < threshold``.

    Reward-guided speculative decoding (RSD, arXiv 2501.19324) keeps a step of the small model with
    a process reward of at least 0.7. The rule is here; the reward is yours: a trained model, or the
    checker of a task. Every step is written by the small model first.
    """

    def __init__(self, reward: RewardFunction, threshold: float = 0.7) -> None:
        """The rule.

        Args:
            reward: Gets the user's message (None for a chat, or raw ids), the texts of the steps
                before, and that of the step.
            threshold: The least reward of a step that stays.

        Raises:
            TypeError: ``reward`` cannot be called, or the threshold is no number.
            ValueError: The threshold is NaN.
        """
        check_function("reward", reward)
        check_score("threshold", threshold)
        self.reward = reward
        self.threshold = threshold

    def score(self, step: WrittenStep) -> float:
        """The reward."""
        score = self.reward(step.question, step.previous, step.text)
        check_score(f"the reward of {self.name}", score)
        return score

    def rejects(self, score: float) -> bool:
        """Below the threshold."""
        return score < self.threshold
