"""Whose turn it is: nobody starves, one row never waits, and passes are fuller."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from hypothesis import given
from hypothesis import strategies as st

from glimprouter.hf.run.turns import WaitingTurns

NAMES = ("small", "large")
# Tokens that a sequence wants of the small model, then of the large one, then of the small one, ...
SEQUENCES = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=20)


class Simulation:
    """Sequences as counts of tokens; a pass gives one token to all rows that wait for its model."""

    def __init__(self, sequences: list[list[int]]) -> None:
        self.left = [list(sequence) for sequence in sequences]
        self.part = [0] * len(sequences)  # of each sequence; even: the small model's
        self.waited = [0] * len(sequences)  # passes since the row's last one
        self.longest_wait = 0
        self.passes: list[str] = []

    def waiting(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {name: [] for name in NAMES}
        for row, (left, part) in enumerate(zip(self.left, self.part, strict=True)):
            if part < len(left):
                rows[NAMES[part % 2]].append(row)
        return rows

    def run(self, choose: Callable[[Mapping[str, int]], str | None]) -> Simulation:
        while any((rows := self.waiting()).values()):
            name = choose({name: len(members) for name, members in rows.items()})
            assert name is not None
            assert rows[name], "a pass without rows"
            self.passes.append(name)
            for other in rows[NAMES[1 - NAMES.index(name)]]:
                self.waited[other] += 1
                self.longest_wait = max(self.longest_wait, self.waited[other])
            for row in rows[name]:
                self.waited[row] = 0
                self.left[row][self.part[row]] -= 1
                self.part[row] += self.left[row][self.part[row]] == 0
        return self


class EachInTurn:
    """What was before: both models one after the other, whoever waits."""

    last = "large"

    def choose(self, waiting: Mapping[str, int]) -> str | None:
        for name in (NAMES[1 - NAMES.index(self.last)], self.last):
            if waiting[name]:
                self.last = name
                return name
        return None


@given(SEQUENCES, st.integers(1, 40), st.integers(1, 8))
def test_no_row_waits_longer_than_the_patience(
    sequences: list[list[int]], patience: int, fewer: int
) -> None:
    simulation = Simulation(sequences).run(WaitingTurns(fewer, patience).choose)
    assert simulation.longest_wait <= patience + 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_one_row_never_waits(sequence: list[int]) -> None:
    simulation = Simulation([sequence]).run(WaitingTurns().choose)
    assert simulation.longest_wait == 0
    assert len(simulation.passes) == sum(sequence)


def test_a_model_that_would_go_on_for_ever_gives_way() -> None:
    """Fifteen rows for one that waits: the worst case of a rule that looks at numbers only."""
    turns = WaitingTurns(patience=5)
    names = [turns.choose({"small": 15, "large": 0})]
    names += [turns.choose({"small": 15, "large": 1}) for _ in range(14)]
    assert names == ["small"] * 6 + ["large"] + ["small"] * 6 + ["large"] + ["small"]


def test_nobody_waits() -> None:
    turns = WaitingTurns()
    assert turns.choose({"small": 0, "large": 0}) is None
    assert turns.choose({"small": 0, "large": 2}) == "large"
    assert turns.choose({"small": 0, "large": 0}) is None


def test_passes_are_fuller_than_each_in_turn() -> None:
    """Sixteen sequences of the demo pair's kind: mostly small steps, some large ones."""
    draw = random.Random(1)
    sequences = [[draw.randint(1, 20 if part % 2 else 60) for part in range(9)] for _ in range(16)]
    fuller = Simulation(sequences).run(WaitingTurns().choose)
    in_turn = Simulation(sequences).run(EachInTurn().choose)
    assert fuller.passes.count("large") < 0.8 * in_turn.passes.count("large")
    assert len(fuller.passes) < 0.9 * len(in_turn.passes)
