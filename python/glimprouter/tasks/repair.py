"""Checking a calculation with an error in it: find the error, put it right, go on from there."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from glimprouter.tasks.base import Problem
from glimprouter.tasks.generated import Chain, GeneratedTask

LINE = re.compile(r"(\d\d)([+-])(\d)=(\d\d)")
NO_ERROR = 0.2  # share of the problems whose calculation is right


class Line(NamedTuple):
    """One line of the calculation to be checked: ``left operation right = claimed``."""

    left: int
    operation: str
    right: int
    claimed: int


def result_of(left: int, operation: str, right: int) -> int:
    """Sum or difference, modulo 100."""
    return (left + right if operation == "+" else left - right) % 100


def written(left: int, operation: str, right: int, result: int) -> str:
    """A line as text."""
    return f"{left:02d}{operation}{right}={result:02d}"


class RepairChain(Chain):
    """Where a chain stands: a line, the value so far, and whether the claims still apply."""

    def __init__(self, lines: list[Line]) -> None:
        """Starts before the first line."""
        self.lines = lines
        self.at = 0
        self.value = lines[0].left
        self.diverged = False  # the value is not that of the claims any more
        self.quoted_error = False  # the last step quotes a claim that is wrong
        self.done = False

    def _right_line(self) -> str:
        line = self.lines[self.at]
        result = result_of(self.value, line.operation, line.right)
        return written(self.value, line.operation, line.right, result)

    def next_step(self) -> str | None:
        """The one right next step; None behind the last."""
        if self.quoted_error:
            return f"Wait,{self._right_line()}."
        if self.at == len(self.lines):
            return None if self.done else f"So {self.value:02d}."
        return f"{self._right_line() if self.diverged else written(*self.lines[self.at])}."

    def take(self, text: str) -> bool:
        """Moves past a step as it is written."""
        corrects = text.startswith("Wait,")
        text = text.removeprefix("Wait,")
        if self.quoted_error and not corrects:  # goes on with the claim
            self.value = self.lines[self.at].claimed
            self.at += 1
        quoted_error, self.quoted_error = self.quoted_error and corrects, False
        if self.at == len(self.lines):
            readable = re.fullmatch(r"So \d\d\.", text) is not None and not self.done
            self.done = True
            return readable
        match = LINE.fullmatch(text.removesuffix("."))
        if match is None:
            return False
        line = self.lines[self.at]
        if not (self.diverged or quoted_error) and text == f"{written(*line)}.":
            self.quoted_error = text != f"{self._right_line()}."
            if self.quoted_error:
                return True
        self.value = int(match[4])
        self.diverged = self.diverged or self.value != line.claimed
        self.at += 1
        return True


class Repair(GeneratedTask):
    """Go through a calculation line by line and put its first error right.

    Lines are quoted as they stand; behind a wrong one comes its correction, and the lines after it
    are calculated anew. Whether to correct is the question of the step behind the error: its first
    token answers it.
    """

    name = "repair"

    def draw(self, generator: random.Random, short: bool = False) -> Problem:
        """Three to five lines, four in five calculations with an error; two lines if short."""
        count = 2 if short else generator.randint(3, 5)
        wrong_line = -1 if generator.random() < NO_ERROR else generator.randrange(count)
        return self.calculation(generator, count, wrong_line)

    def calculation(self, generator: random.Random, count: int, wrong_line: int) -> Problem:
        """A problem of ``count`` lines with the error in one of them; -1 for none."""
        claimed = value = generator.randrange(100)
        lines = []
        for index in range(count):
            operation, right = generator.choice("+-"), generator.randrange(10)
            left, claimed = claimed, result_of(claimed, operation, right)
            value = result_of(value, operation, right)
            if index == wrong_line:
                place = generator.choice((1, 10))
                digit = claimed // place % 10
                claimed += place * (generator.choice([d for d in range(10) if d != digit]) - digit)
            lines.append(written(left, operation, right, claimed))
        key = ",".join(lines)
        return Problem(key, f"Check {key}", f"{value:02d}")

    def chain(self, problem: Problem) -> RepairChain:
        """The oracle, before the first step."""
        found = LINE.findall(problem.key)
        return RepairChain([Line(int(a), op, int(b), int(c)) for a, op, b, c in found])
