"""Training texts for the embedded pair: the written trace, wrong steps and their corrections.

A trace is a list of steps; an exact oracle (:class:`Oracle`) follows it and gives the one right
next step, so that the correctness of every step is decided, not judged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from glimprouter.demo_pair import task as shipped

# Probability that a step of a training text is replaced by a wrong one.
WRONG_STEP = {"start": 0.02, "choice": 0.10, "arithmetic": 0.12, "left": 0.03}
WRONG_CORRECTION = 0.08


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a training text: its text, and whether it is right (wrong ones carry no loss)."""

    text: str
    right: bool


class Oracle:
    """Gives the right steps of a problem in order."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        """Starts before the first step."""
        self.numbers = numbers
        self.kind = "start"

    def step(self) -> str | None:
        """The right next step, without correction prefix; None after the last."""
        if self.kind == "start":
            return f"Start:{shipped.format_list(self.numbers)}."
        if self.kind == "done":
            return None
        if self.kind == "final":
            return f"So {shipped.format_number(self.numbers[0])}."
        a, b, combined, left = shipped.reduce_once(self.numbers)
        first, second, result = map(shipped.format_number, (a, b, combined))
        if self.kind == "choice":
            return f"{first},{second} next."
        if self.kind == "arithmetic":
            formula = f"{second}-{first}" if a % 2 == b % 2 else f"{first}*3+{second}"
            return f"{result}={formula}."
        return f"Left:{shipped.format_list(left)}."

    def advance(self) -> None:
        """Moves past the current step."""
        order = {"start": "choice", "choice": "arithmetic", "arithmetic": "left", "final": "done"}
        if self.kind == "left":
            self.numbers = shipped.reduce_once(self.numbers)[3]
            self.kind = "choice" if len(self.numbers) > 1 else "final"
        else:
            self.kind = order[self.kind]


def corrupt(text: str, kind: str, numbers: tuple[int, ...], generator: random.Random) -> str:
    """A wrong version of the step that looks like one."""
    for _ in range(20):
        if kind == "choice" and len(numbers) > 2:
            a, b = sorted(generator.sample(numbers, 2))
            wrong = f"{shipped.format_number(a)},{shipped.format_number(b)} next."
        else:
            digits = [i for i, c in enumerate(text) if c.isdigit()]
            if kind == "arithmetic":
                digits = [i for i in digits if i < text.index("=")]
            at = generator.choice(digits)
            wrong = text[:at] + str(generator.randrange(10)) + text[at + 1 :]
        if wrong != text:
            return wrong
    return text


def training_steps(numbers: tuple[int, ...], generator: random.Random) -> list[Step]:
    """A trace in which some steps are wrong and followed by their correction (``Wait,...``)."""
    oracle = Oracle(numbers)
    steps: list[Step] = []
    while (text := oracle.step()) is not None:
        chance = WRONG_STEP.get(oracle.kind, 0.0)
        prefix = ""
        while generator.random() < chance:
            wrong = corrupt(text, oracle.kind, oracle.numbers, generator)
            if wrong == text:
                break
            steps.append(Step(prefix + wrong, right=False))
            prefix = "Wait,"
            chance = WRONG_CORRECTION
        steps.append(Step(prefix + text, right=True))
        oracle.advance()
    return steps


def training_segments(
    numbers: tuple[int, ...], generator: random.Random
) -> tuple[str, list[tuple[str, bool]]]:
    """The user message, and the answer text in segments (text, carries loss)."""
    problem = shipped.problem_of(numbers)
    segments = [(f"{step.text}\n\n", step.right) for step in training_steps(numbers, generator)]
    segments.append((f"</think>\n\n{problem.answer}", True))
    return problem.prompt, segments


def training_numbers(generator: random.Random, max_numbers: int) -> tuple[int, ...]:
    """A list that is not held out."""
    while True:
        numbers: tuple[int, ...] = shipped.random_numbers(generator, max_numbers)
        if not shipped.is_held_out(numbers):
            return numbers
