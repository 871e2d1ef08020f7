"""Multi-digit arithmetic, digit by digit: errors happen inside steps, behind a fixed opener."""

from __future__ import annotations

import random
import re

from glimprouter.tasks.base import Problem
from glimprouter.tasks.generated import Chain, GeneratedTask

STEPS = {
    "take": re.compile(r"We take (\d+)([*+])(\d+)\."),
    "digit": re.compile(r"We get [\d*+]+=(\d\d)\."),
    "have": re.compile(r"We have (\d+)\."),
}


class ArithmeticChain(Chain):
    """Where a chain stands: the calculation under way, its column, and the digits so far."""

    def __init__(self, factor: str, digit: str, addend: str) -> None:
        """Starts before the product; the sum with ``addend`` follows it."""
        self.addend: str | None = addend
        self.operation = "*"
        self.left, self.right = factor, digit
        self.kind = "take"
        self.columns: list[int] = []  # what was written for each column, carry included

    def _column_count(self) -> int:
        if self.operation == "*":
            return len(self.left)
        return max(len(self.left), len(self.right))

    def _column(self) -> str:
        """The calculation of the next column, units first."""
        at = len(self.columns)
        carry = self.columns[-1] // 10 if self.columns else 0
        first = int(self.left[-1 - at]) if at < len(self.left) else 0
        if self.operation == "*":
            second = int(self.right)
            return f"{first}*{second}+{carry}={first * second + carry:02d}"
        second = int(self.right[-1 - at]) if at < len(self.right) else 0
        return f"{first}+{second}+{carry}={first + second + carry:02d}"

    def next_step(self) -> str | None:
        """The one right next step; None behind the last."""
        if self.kind == "take":
            return f"We take {self.left}{self.operation}{self.right}."
        if self.kind == "digit":
            return f"We get {self._column()}."
        if self.kind == "have":
            digits = "".join(str(column % 10) for column in reversed(self.columns[:-1]))
            return f"We have {int(f'{self.columns[-1]}{digits}')}."
        return None

    def take(self, text: str) -> bool:
        """Moves past a step as it is written."""
        pattern = STEPS.get(self.kind)
        match = pattern.fullmatch(text) if pattern else None
        if match is None:
            return False
        if self.kind == "take":
            self.left, self.operation, self.right = match[1], match[2], match[3]
            if self.operation == "*" and len(self.right) > 1:
                return False
            self.columns = []
            self.kind = "digit"
        elif self.kind == "digit":
            self.columns.append(int(match[1]))
            if len(self.columns) == self._column_count():
                self.kind = "have"
        elif self.addend is not None:
            self.left, self.operation, self.right = match[1], "+", self.addend
            self.addend = None
            self.kind = "take"
        else:
            self.kind = "done"
        return True


class Arithmetic(GeneratedTask):
    """A product by one digit and a sum, column by column.

    Every step begins with the same word: its first token says nothing about what may go wrong in
    it. Chains never look back: what is wrong stays wrong.
    """

    name = "arithmetic"
    correction = ""

    def draw(self, generator: random.Random, short: bool = False) -> Problem:
        """Two or three digits times one, plus two to four digits; two each if short."""
        factor = generator.randrange(10, 10 ** (2 if short else generator.randint(2, 3)))
        addend = generator.randrange(10, 10 ** (2 if short else generator.randint(2, 4)))
        digit = generator.randint(2, 9)
        question = f"{factor}*{digit}+{addend}"
        return Problem(question, f"Compute {question}", str(factor * digit + addend))

    def chain(self, problem: Problem) -> ArithmeticChain:
        """The oracle, before the first step."""
        factor, digit, addend = re.split(r"[*+]", problem.key)
        return ArithmeticChain(factor, digit, addend)
