"""What drafts are worth by the costs of passes alone: no model runs here.

    python benchmarks/turns_simulation.py

Sequences of easy and hard steps go through passes whose costs were measured, in the order of
`glimprouter.hf.run.drafted_turns`. Printed: how much faster than the large model alone, in batches
of as many rows; beside it without drafts, and plain speculative decoding of the large model.

A model reads the text of the other for nothing here. That is nearly so where a pass waits for its
weights; on a CPU each token read costs about half of one written, and of the demo pair in batches
less than half of the printed gains was measured (docs/kernel-notes.md, sections 16 and 20).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from glimprouter.hf.run.costs import PassCosts
from glimprouter.hf.run.drafted_turns import DraftedTurns, WaitingRow
from glimprouter.hf.run.turns import WaitingTurns
from glimprouter.hf.sequence.drafts import Drafts

TOKENS = 420  # of a sequence
FIRST, OTHERS = 0.75, 0.98  # of a large step's tokens the small model knows so many
MOST_DRAFTS = 16


class Machine(NamedTuple):
    """Milliseconds of a pass: fixed, and of each token.

    Attributes:
        small: Of the small model.
        large: Of the large one.
    """

    small: tuple[float, float]
    large: tuple[float, float]

    def cost(self, model: str, tokens: int) -> float:
        """Of a pass over so many tokens."""
        fixed, slope = self.small if model == "small" else self.large
        return fixed + slope * tokens


# Decoding of 4B and 32B in bfloat16 on an H200: 7.0 and 23.7 ms for one row, of the 32B 30.2 for
# sixteen; what a row adds to the 4B was not measured by itself. And of the demo pair on one CPU
# core the native passes of 1 and 64 rows (benchmarks/results/cpu-epyc-avx512-4234512.json): there
# the time of the loop around them, and of the text that a model reads of the other, is left out.
MACHINES = {
    "H200, 4B + 32B": Machine((7.0, 0.08), (23.3, 0.44)),
    "CPU, demo pair": Machine((0.012, 0.0067), (0.084, 0.083)),
}


@dataclass
class Row:
    """A sequence: steps to come, each of so many tokens and hard or not.

    Attributes:
        steps: Steps, the running one first.
        written: Tokens of the running one.
        waits_for_large: Whether it waits for the large model.
        drafts: What was drafted.
    """

    steps: list[tuple[int, bool]]
    written: int = 0
    waits_for_large: bool = False
    drafts: Drafts = field(default_factory=Drafts)

    def take(self, count: int) -> int:
        """Writes so many tokens, at most to the end of the step; how many that were."""
        length, _ = self.steps[0]
        count = min(count, length - self.written)
        self.written += count
        if self.written == length:
            self.steps.pop(0)
            self.written, self.waits_for_large = 0, False
        return count

    @property
    def left(self) -> int:
        """Tokens of the running step that are to come."""
        return self.steps[0][0] - self.written


class Simulation:
    """Rows of a batch, and what their passes cost."""

    def __init__(self, machine: Machine, rows: Sequence[Row], seed: int) -> None:
        """Nothing has run.

        Args:
            machine: Costs.
            rows: All that are in flight.
            seed: Of which drafts hold.
        """
        self.machine = machine
        self.rows = list(rows)
        self.time = 0.0
        self.passes = {"small": 0, "large": 0}
        self.longest_wait = 0
        self._random = random.Random(seed)
        self._turns = DraftedTurns(PassCosts({"small": 1.0, "large": 4.0}, measures=True))
        self._waited: dict[int, int] = {}

    def run(self) -> Simulation:
        """To the end of all rows."""
        while self.rows:
            small = [row for row in self.rows if not row.waits_for_large]
            large = [row for row in self.rows if row.waits_for_large]
            turn = self._turns.choose(len(small), [self._waiting(row) for row in large])
            assert turn is not None
            drafting = [large[place] for place in turn.drafting]
            if turn.model == "small":
                self._small(small, drafting)
                for row in large:
                    self._waited[id(row)] = self._waited.get(id(row), 0) + 1
            else:
                self._large(large)
                self._waited.clear()
            self.longest_wait = max([self.longest_wait, *self._waited.values()])
            self.rows = [row for row in self.rows if row.steps]
        return self

    def _waiting(self, row: Row) -> WaitingRow:
        # One that ends the step is of no use.
        takes_more = len(row.drafts) < min(MOST_DRAFTS, row.left - 1)
        *held, following = row.drafts.chances(at_start=row.written == 0)
        return WaitingRow(len(row.drafts), takes_more, 1 + sum(held), following)

    def _small(self, small: Sequence[Row], drafting: Sequence[Row]) -> None:
        written = 0
        for row in small:
            if row.steps[0][1] and row.written == 0:
                row.waits_for_large = True
                if row.left > 1:
                    row.drafts.add(0, 0)  # from the logits of the glimpse
            else:
                written += row.take(1)
        for row in drafting:
            row.drafts.add(0, 0)
        self._over("small", len(small) + len(drafting), written)

    def _large(self, large: Sequence[Row]) -> None:
        tokens, written = sum(1 + len(row.drafts) for row in large), 0
        for row in large:
            held = 0
            while held < len(row.drafts) and self._holds(first=row.written + held == 0):
                held += 1
            row.drafts.settle(held, at_start=row.written == 0)
            written += row.take(held + 1)
        self._over("large", tokens, written)

    def _holds(self, *, first: bool) -> bool:
        return self._random.random() < (FIRST if first else OTHERS)

    def _over(self, model: str, tokens: int, written: int) -> None:
        cost = self.machine.cost(model, tokens)
        self.time += cost
        self.passes[model] += 1
        self._turns.note(model, tokens, written, cost)


def rows_of(count: int, hard: float, seed: int) -> list[Row]:
    """Sequences whose steps have the lengths of the paper's, a share of them hard."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        steps: list[tuple[int, bool]] = []
        while sum(length for length, _ in steps) < TOKENS:
            length = round(min(141, max(6, generator.lognormvariate(2.94, 0.87))))
            steps.append((length, generator.random() < hard))
        rows.append(Row(steps))
    return rows


def without_drafts(machine: Machine, rows: Sequence[Row]) -> float:
    """Milliseconds of routing alone: one model runs while the rows of the other wait."""
    turns, time, left = WaitingTurns(), 0.0, list(rows)
    while left:
        waiting = {
            name: [row for row in left if row.waits_for_large == (name == "large")]
            for name in ("small", "large")
        }
        name = turns.choose({model: len(own) for model, own in waiting.items()})
        assert name is not None
        time += machine.cost(name, len(waiting[name]))
        for row in waiting[name]:
            if name == "small" and row.steps[0][1] and row.written == 0:
                row.waits_for_large = True
            else:
                row.take(1)
        left = [row for row in left if row.steps]
    return time


def large_alone(machine: Machine, rows: Sequence[Row]) -> float:
    """Milliseconds of the same text by the large model, a token of each row a pass."""
    lengths = [sum(length for length, _ in row.steps) for row in rows]
    return sum(
        machine.cost("large", sum(length > at for length in lengths)) for at in range(max(lengths))
    )


def speculative(machine: Machine, rows: Sequence[Row], seed: int, drafts: int = 4) -> float:
    """The same by plain speculative decoding: so many drafts of each row before each pass."""
    generator = random.Random(seed)
    left = [sum(length for length, _ in row.steps) for row in rows]
    time = 0.0
    while left:
        time += drafts * machine.cost("small", len(left))
        time += machine.cost("large", (drafts + 1) * len(left))
        for place, _ in enumerate(left):
            held = 1
            while held <= drafts and generator.random() < OTHERS:
                held += 1
            left[place] -= held
        left = [tokens for tokens in left if tokens > 0]
    return time


def gains(machine: Machine, count: int, hard: float) -> dict[str, float]:
    """Speed over the large model alone, the median of some batches."""
    ways: dict[str, Callable[[list[Row], int], float]] = {
        "routed": lambda rows, _: without_drafts(machine, rows),
        "with drafts": lambda rows, seed: Simulation(machine, rows, seed).run().time,
        "speculative": lambda rows, seed: speculative(machine, rows, seed),
    }
    seeds = range(5)
    return {
        name: statistics.median(
            large_alone(machine, rows_of(count, hard, seed)) / way(rows_of(count, hard, seed), seed)
            for seed in seeds
        )
        for name, way in ways.items()
    }


def main() -> None:
    """Prints a table."""
    print(f"{'':16s} {'hard':>5s} {'rows':>5s}  over the large model alone")
    for name, machine in MACHINES.items():
        for hard in (0.15, 0.25):
            for count in (1, 4, 16, 64):
                found = gains(machine, count, hard)
                shown = ", ".join(f"{way} {gain:.2f}" for way, gain in found.items())
                print(f"{name:16s} {hard:5.2f} {count:5d}  {shown}")


if __name__ == "__main__":
    main()
