"""Tasks whose problems are drawn and whose chains an exact oracle follows."""

from __future__ import annotations

import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

from glimprouter.tasks.base import SPLITS, Problem, Split, Task

HELD_OUT_MODULUS = 20  # prompts of whose classes one in so many is never trained on
DRAWS_WITHOUT_A_NEW_ONE = 200_000  # then there are no more


def split_of(text: str) -> Split | None:
    """Which split a problem belongs to, by the CRC32 of its text; None for a training problem.

    Class 0 modulo 20 is held out, and halved: 0 modulo 40 is the report's, 20 development.
    """
    remainder = zlib.crc32(text.encode()) % (2 * HELD_OUT_MODULUS)
    return {0: "report", HELD_OUT_MODULUS: "development"}.get(remainder)  # type: ignore[return-value]


def check_request(count: int, split: str) -> None:
    """Refuses what no task can give.

    Raises:
        ValueError: A negative count or an unknown split.
    """
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


class Chain(ABC):
    """Follows a written chain: what is right next, from whatever stands there."""

    @abstractmethod
    def next_step(self) -> str | None:
        """The one right next step; None where none is: behind the end, or past saving."""

    @abstractmethod
    def take(self, text: str) -> bool:
        """Moves past a step as it is written, right or wrong.

        Args:
            text: The step, with or without the opener of a correction.

        Returns:
            Whether it could be read; if not, the chain cannot be followed any further.
        """


class GeneratedTask(Task):
    """Drawn problems with exact answers, and the right next step from any point of a chain.

    Attributes:
        correction: Opens the step behind a wrong one, which is the right version of that; empty
            where chains of the task never look back.
    """

    checks_steps = True
    correction: str = "Wait,"

    @abstractmethod
    def draw(self, generator: random.Random, short: bool = False) -> Problem:
        """Any problem, of either split or for training.

        Args:
            generator: Where chance comes from.
            short: Only small problems, with which training begins.
        """

    @abstractmethod
    def chain(self, problem: Problem) -> Chain:
        """The oracle, before the first step."""

    def split_of(self, problem: Problem) -> Split | None:
        """The split of a problem; None for one that may be trained on."""
        return split_of(problem.key)

    def draw_for_training(self, generator: random.Random, short: bool = False) -> Problem:
        """A problem of neither split."""
        while True:
            problem = self.draw(generator, short)
            if self.split_of(problem) is None:
                return problem

    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        """Distinct problems, the same for the same arguments in every process.

        Raises:
            ValueError: A negative count, an unknown split, or more than there are.
        """
        check_request(count, split)
        generator = random.Random(f"{self.name}/{split}/{seed}")
        found: dict[str, Problem] = {}
        fruitless = 0
        while len(found) < count:
            problem = self.draw(generator)
            if self.split_of(problem) != split or problem.key in found:
                fruitless += 1
                if fruitless > DRAWS_WITHOUT_A_NEW_ONE:
                    raise ValueError(
                        f"{self.name} has no {count} {split} problems: {len(found)} were found"
                    )
                continue
            found[problem.key] = problem
            fruitless = 0
        return list(found.values())

    def is_correct(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is exactly the right one; white space around it does not count."""
        return answer.strip() == problem.answer

    def right_steps(self, problem: Problem) -> list[str]:
        """The chain without any wrong step."""
        chain = self.chain(problem)
        steps = []
        while (step := chain.next_step()) is not None:
            steps.append(step)
            chain.take(step)
        return steps

    def corrected(self, right: str) -> str:
        """The step that puts a wrong one right."""
        return right if right.startswith(self.correction) else self.correction + right

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool | None]:
        """Whether each step is the right one, given those before it.

        Behind a wrong step the right one is its correction (where the task has them). A step that
        goes on instead is wrong, too; from there what is written counts as it stands, and steps
        that follow from it are right.

        Args:
            problem: The problem.
            steps: Texts of the steps, without delimiters.

        Returns:
            One a step; None behind a step that cannot be read.
        """
        chain = self.chain(problem)
        verdicts: list[bool | None] = []
        wrong: str | None = None  # the last step, if it is wrong and may still be put right
        for text in (step.strip() for step in steps):
            corrects = wrong is not None and text.startswith(self.correction)
            goes_past = wrong is not None and not corrects
            if wrong is not None and goes_past and not chain.take(wrong):
                verdicts.append(False)
                break
            right = chain.next_step()
            if corrects and right is not None:
                right = self.corrected(right)
            verdicts.append(text == right and not goes_past)
            wrong = text if text != right and self.correction else None
            if wrong is None and not chain.take(text):
                break
        return verdicts + [None] * (len(steps) - len(verdicts))
