"""Multi-digit arithmetic, digit by digit: errors happen inside steps, behind a fixed opener."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from glimprouter.tasks.base import Problem, Split
from glimprouter.tasks.generated import Chain, GeneratedTask

# How each kind of step is written: with which opener, or with the result at the beginning.
FORMS = {
    "take": "We take {left}{operation}{right}.",
    "digit": "We get {column}={result}.",
    "have": "We have {result}.",
}
RESULT_FIRST_FORMS = {
    "take": "{left}{operation}{right} next.",
    "digit": "{result}={column}.",
    "have": "{result} so far.",
}
FIELDS = {
    "left": r"(?P<left>\d+)",
    "operation": r"(?P<operation>[*+])",
    "right": r"(?P<right>\d+)",
    "column": r"[\d*+]+",
}


class ArithmeticChain(Chain):
    """Where a chain stands: the calculation under way, its column, and the digits so far."""

    def __init__(self, factor: str, digit: str, addend: str, forms: Mapping[str, str]) -> None:
        """Starts before the product; the sum with ``addend`` follows it."""
        self.forms = forms
        self.addend: str | None = addend
        self.operation = "*"
        self.left, self.right = factor, digit
        self.kind = "take"
        self.columns: list[int] = []  # what was written for each column, carry included

    def _column_count(self) -> int:
        if self.operation == "*":
            return len(self.left)
        return max(len(self.left), len(self.right))

    def _column(self) -> tuple[str, str]:
        """The calculation of the next column, units first, and what comes out."""
        at = len(self.columns)
        carry = self.columns[-1] // 10 if self.columns else 0
        first = int(self.left[-1 - at]) if at < len(self.left) else 0
        if self.operation == "*":
            second = int(self.right)
            return f"{first}*{second}+{carry}", f"{first * second + carry:02d}"
        second = int(self.right[-1 - at]) if at < len(self.right) else 0
        return f"{first}+{second}+{carry}", f"{first + second + carry:02d}"

    def next_step(self) -> str | None:
        """The one right next step; None behind the last."""
        if self.kind not in self.forms:
            return None
        column = result = ""
        if self.kind == "digit":
            column, result = self._column()
        elif self.kind == "have":
            digits = "".join(str(column % 10) for column in reversed(self.columns[:-1]))
            result = str(int(f"{self.columns[-1]}{digits}"))
        return self.forms[self.kind].format(
            left=self.left,
            operation=self.operation,
            right=self.right,
            column=column,
            result=result,
        )

    def take(self, text: str) -> bool:
        """Moves past a step as it is written."""
        match = self._read(text)
        if match is None:
            return False
        if self.kind == "take":
            self.left, self.operation, self.right = match.group("left", "operation", "right")
            if self.operation == "*" and len(self.right) > 1:
                return False
            self.columns = []
            self.kind = "digit"
        elif self.kind == "digit":
            self.columns.append(int(match["result"]))
            if len(self.columns) == self._column_count():
                self.kind = "have"
        elif self.addend is not None:
            self.left, self.operation, self.right = match["result"], "+", self.addend
            self.addend = None
            self.kind = "take"
        else:
            self.kind = "done"
        return True

    def _read(self, text: str) -> re.Match[str] | None:
        """A step as one of the kind that is due."""
        if self.kind not in self.forms:
            return None
        form = re.escape(self.forms[self.kind]).replace(r"\{", "{").replace(r"\}", "}")
        digits = r"\d\d" if self.kind == "digit" else r"\d+"
        return re.fullmatch(form.format(**FIELDS, result=f"(?P<result>{digits})"), text)


class Arithmetic(GeneratedTask):
    """A product by one digit and a sum, column by column.

    Every step begins with the same word: its first token says nothing about what may go wrong in
    it. Chains never look back: what is wrong stays wrong.
    """

    name = "arithmetic"
    correction = ""
    forms: Mapping[str, str] = FORMS

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
        return ArithmeticChain(factor, digit, addend, self.forms)


class ArithmeticResultFirst(Arithmetic):
    """The same calculations, and each step begins with what comes out of it.

    So a step begins with what can be wrong in it (all of it, where a tokenizer has pairs of
    digits): beside :class:`Arithmetic`, whose problems these are, it tells whether a glimpse fails
    because of how steps begin. That the operands stand behind the result makes it harder, too.
    """

    name = "arithmetic_result_first"
    forms = RESULT_FIRST_FORMS

    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        """Those of :class:`Arithmetic`."""
        return Arithmetic().problems(count, split, seed)
