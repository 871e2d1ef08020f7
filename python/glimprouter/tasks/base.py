"""What a task of step-by-step problems is: its problems, and who checks what was written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["development", "report"]
SPLITS: tuple[Split, ...] = ("development", "report")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task.

    Attributes:
        key: Names it among all problems of the task, the same in every process.
        prompt: The user message.
        answer: The right answer, as text.
    """

    key: str
    prompt: str
    answer: str


class Task(ABC):
    """A family of problems with exact answers.

    Problems of the two splits are disjoint by construction, and neither is trained on: thresholds
    are chosen on ``"development"``, figures come from ``"report"``.

    Attributes:
        name: By which it is asked for.
        checks_steps: Whether :meth:`check_steps` can tell.
        checker: How answers are compared, in words for a report.
    """

    name: str
    checks_steps: bool = False
    checker: str = "exact text"

    @abstractmethod
    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        """Distinct problems, the same for the same arguments.

        Raises:
            ValueError: A negative count, an unknown split, or more than there are.
        """

    @abstractmethod
    def is_correct(self, problem: Problem, answer: str) -> bool:
        """Whether an answer, the text behind the thinking, is right."""

    def vote_key(self, answer: str) -> str:
        """What two answers have in common that are the same answer, for a vote; empty for none."""
        return answer.strip()

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool | None]:
        """Whether each step is right, given those before it.

        Args:
            problem: The problem.
            steps: Texts of the steps, without delimiters.

        Returns:
            One a step; None where it cannot be told.
        """
        return [None] * len(steps)
