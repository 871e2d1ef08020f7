"""A task of one's own, for ``glimprouter evaluate run --task examples/own_task.py:Sums``."""

from __future__ import annotations

import random
from collections.abc import Sequence

from glimprouter.tasks import Problem, Split, Task


class Sums(Task):
    """Sums of three numbers; the last one is even in the report, odd in development."""

    name = "sums"
    checks_steps = True

    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        """Distinct problems, the same for the same arguments."""
        draw = random.Random(f"{split}/{seed}")
        last = range(0, 100, 2) if split == "report" else range(1, 100, 2)
        found: dict[str, Problem] = {}
        while len(found) < count:
            numbers = [draw.randrange(100), draw.randrange(100), draw.choice(last)]
            key = "+".join(map(str, numbers))
            found[key] = Problem(key, f"What is {key}?", str(sum(numbers)))
        return list(found.values())

    def is_correct(self, problem: Problem, answer: str) -> bool:
        """Whether the last word is the sum."""
        return answer.split()[-1:] == [problem.answer]

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool | None]:
        """Right where a step's equation holds; None where it has none."""
        verdicts: list[bool | None] = []
        for step in steps:
            left, equals, right = step.partition("=")
            terms = left.split()[-1].split("+") if equals and left.split() else []
            if not terms or not all(t.isdigit() for t in [*terms, right.strip(" .")]):
                verdicts.append(None)
            else:
                verdicts.append(sum(map(int, terms)) == int(right.strip(" .")))
        return verdicts


if __name__ == "__main__":
    print(Sums().problems(3, "report"))
