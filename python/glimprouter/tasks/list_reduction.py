"""The embedded pair's task: steps of copying, choosing and calculating."""

from __future__ import annotations

import random
import re

from glimprouter.demo_pair import task as demo
from glimprouter.tasks.base import Problem
from glimprouter.tasks.generated import Chain, GeneratedTask

SHORT_NUMBERS = 4
NEXT = {"start": "choice", "choice": "arithmetic", "arithmetic": "left", "final": "done"}
PATTERNS = {
    "start": r"Start:(\d\d(?:,\d\d)*)\.",
    "choice": r"(\d\d,\d\d) next\.",
    "arithmetic": r"(\d\d)=\d\d(?:\*3\+|-)\d\d\.",
    "left": r"Left:(\d\d(?:,\d\d)*)\.",
    "final": r"So (\d\d)\.",
}


def numbers_of(text: str) -> tuple[int, ...]:
    """The numbers of a list like ``18,39,12``."""
    return tuple(int(part) for part in text.split(","))


class ListReductionChain(Chain):
    """Where a chain stands: the list as written last, the two chosen numbers, their combination."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        """Starts before the copy of the list."""
        self.numbers = numbers
        self.kind = "start"
        self.chosen = (0, 0)
        self.combined = 0

    def next_step(self) -> str | None:
        """The one right next step; None behind the last."""
        a, b = self.chosen
        if self.kind == "start":
            return f"Start:{demo.format_list(self.numbers)}."
        if self.kind == "choice":
            a, b = demo.reduce_once(self.numbers)[:2]
            return f"{demo.format_list((a, b))} next."
        if self.kind == "arithmetic":
            first, second = map(demo.format_number, (a, b))
            formula = f"{second}-{first}" if a % 2 == b % 2 else f"{first}*3+{second}"
            return f"{demo.format_number(demo.combine(a, b))}={formula}."
        if self.kind == "left":
            rest = list(self.numbers)
            rest.remove(a)
            rest.remove(b)
            return f"Left:{demo.format_list((*rest, self.combined))}."
        return f"So {demo.format_number(self.numbers[0])}." if self.kind == "final" else None

    def take(self, text: str) -> bool:
        """Moves past a step as it is written."""
        pattern = PATTERNS.get(self.kind)
        match = re.fullmatch(pattern, text.removeprefix("Wait,")) if pattern else None
        if match is None:
            return False
        written = numbers_of(match[1])
        if self.kind in ("start", "left"):
            self.numbers = written
            self.kind = "choice" if len(written) > 1 else "final"
            return True
        if self.kind == "choice":
            a, b = sorted(written)
            if a not in self.numbers or self.numbers.count(b) < 1 + (a == b):
                return False
            self.chosen = (a, b)
        elif self.kind == "arithmetic":
            self.combined = written[0]
        self.kind = NEXT[self.kind]
        return True


class ListReduction(GeneratedTask):
    """Reduce a list of two-digit numbers: the easy steps copy, the hard ones calculate.

    The splits halve the problems that the shipped models never saw
    (:func:`glimprouter.demo_pair.task.is_held_out`).
    """

    name = "list_reduction"

    def draw(self, generator: random.Random, short: bool = False) -> Problem:
        """A list of 3 to 7 numbers; of 3 or 4 if it is to be short."""
        longest = SHORT_NUMBERS if short else demo.MAX_NUMBERS
        problem = demo.problem_of(demo.random_numbers(generator, longest))
        return Problem(demo.format_list(problem.numbers), problem.prompt, problem.answer)

    def chain(self, problem: Problem) -> ListReductionChain:
        """The oracle, before the first step."""
        return ListReductionChain(numbers_of(problem.key))
