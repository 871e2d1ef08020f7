"""Training texts of each task: right chains, most with wrong steps in them and their corrections.

A wrong step carries no loss and is followed by its correction, so that a model learns to put right
what it is never taught to write.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import list_reduction_texts

from glimprouter.tasks.arithmetic import Arithmetic, ArithmeticResultFirst
from glimprouter.tasks.base import Problem
from glimprouter.tasks.generated import GeneratedTask
from glimprouter.tasks.repair import Repair
from glimprouter.tasks.search import Search

Segments = list[tuple[str, bool]]  # (text, whether it carries loss)
WrongStep = Callable[[Any, str, random.Random], str | None]

WRONG_CHOICE = 0.15  # of the steps of a search
WRONG_LINE = 0.27  # of the calculated lines of a repair
WRONG_COPY = 0.03


class TrainingTexts(ABC):
    """Where the training texts of a task come from."""

    @abstractmethod
    def text(self, generator: random.Random, short: bool) -> tuple[str, Segments]:
        """The user message, and the answer in segments; ``short``: of a small problem."""


class ListReductionTexts(TrainingTexts):
    """The embedded pair's texts, exactly as it was trained."""

    def text(self, generator: random.Random, short: bool) -> tuple[str, Segments]:
        """The user message, and the answer in segments; ``short``: of a small problem."""
        longest = 4 if short else list_reduction_texts.shipped.MAX_NUMBERS
        numbers = list_reduction_texts.training_numbers(generator, longest)
        return list_reduction_texts.training_segments(numbers, generator)


class GeneratedTexts(TrainingTexts):
    """The chains of a task's oracle, with wrong steps in them."""

    def __init__(self, task: GeneratedTask, wrong_step: WrongStep) -> None:
        """Takes the task, and what may stand in place of a right step."""
        self.task = task
        self.wrong_step = wrong_step

    def problem(self, generator: random.Random, short: bool) -> Problem:
        """What the text is of: a problem of neither split."""
        return self.task.draw_for_training(generator, short)

    def text(self, generator: random.Random, short: bool) -> tuple[str, Segments]:
        """The user message, and the answer in segments; ``short``: of a small problem."""
        problem = self.problem(generator, short)
        chain = self.task.chain(problem)
        segments: Segments = []
        while (right := chain.next_step()) is not None:
            step = right
            while (wrong := self.wrong_step(chain, step, generator)) is not None:
                segments.append((f"{wrong}\n\n", False))
                step = self.task.corrected(right)
            segments.append((f"{step}\n\n", True))
            chain.take(right)
        segments.append((f"</think>\n\n{problem.answer}", True))
        return problem.prompt, segments


class RepairTexts(GeneratedTexts):
    """Half of the calculations are long, with the error at once: so most lines are calculated.

    In the task's own problems most lines are copied, and nothing is learnt from a copy.
    """

    def problem(self, generator: random.Random, short: bool) -> Problem:
        """Of neither split, like those of the task."""
        if short or generator.random() < 0.5:
            return super().problem(generator, short)
        assert isinstance(self.task, Repair)
        while True:
            problem = self.task.calculation(generator, generator.randint(5, 8), 0)
            if self.task.split_of(problem) is None:
                return problem


def another_digit(text: str, start: int, generator: random.Random) -> str:
    """The text with one of its digits behind ``start`` changed."""
    at = generator.choice([i for i, c in enumerate(text) if c.isdigit() and i >= start])
    return text[:at] + generator.choice("0123456789".replace(text[at], "")) + text[at + 1 :]


def never_wrong(chain: Any, right: str, generator: random.Random) -> str | None:
    """For chains with no wrong step of their own."""
    del chain, right, generator
    return None


def wrong_in_search(chain: Any, right: str, generator: random.Random) -> str | None:
    """The way into a dead end, or a node that is not copied right."""
    chance = generator.random()
    opener = "Wait," if right.startswith("Wait,") else ""
    dead_ends = [node for node in chain.candidates if node not in chain.way]
    if dead_ends and chance < WRONG_CHOICE:
        return opener + str(chain.describe(generator.choice(dead_ends)))
    if " leads to " in right and chance > 1 - WRONG_COPY:
        return another_digit(right, right.index(" to "), generator)
    return None


def wrong_in_repair(chain: Any, right: str, generator: random.Random) -> str | None:
    """A wrong digit: rarely in what is copied, often in what is calculated."""
    if "=" not in right:
        return another_digit(right, 0, generator) if generator.random() < WRONG_COPY else None
    if not (chain.diverged or chain.quoted_error) or generator.random() >= WRONG_LINE:
        return None
    return another_digit(right, right.index("="), generator)


# By the name of a task, and further ones for what varies.
TRAINING_TEXTS: dict[str, TrainingTexts] = {
    "list_reduction": ListReductionTexts(),
    "arithmetic": GeneratedTexts(Arithmetic(), never_wrong),
    "arithmetic_result_first": GeneratedTexts(ArithmeticResultFirst(), never_wrong),
    "search": GeneratedTexts(Search(), wrong_in_search),
    "repair": RepairTexts(Repair(), wrong_in_repair),
    "repair without slips": RepairTexts(Repair(), never_wrong),
}
