"""What a device for each model is worth by the costs of passes alone: a prediction, not measured.

    python benchmarks/two_devices_simulation.py

The rows and costs of `turns_simulation.py`, in the order of `glimprouter.hf.run.overlapped_turns`:
passes of both models at once. Nothing is assumed to slow them down where they overlap, neither
Python that launches both nor logits that are copied. Printed: how much faster than in turns on one
device, without drafts and with them; and for which share of the time each device computes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from glimprouter.hf.run.overlapped_turns import OverlappedTurns
from turns_simulation import MACHINES, Machine, Row, Simulation, rows_of, without_drafts


class OverlappedSimulation(Simulation):
    """Rows of a batch whose passes run on two devices.

    Attributes:
        busy: Milliseconds that each device computed.
    """

    def __init__(self, machine: Machine, rows: Sequence[Row], seed: int, *, drafts: bool) -> None:
        """Nothing has run.

        Args:
            machine: Costs.
            rows: All that are in flight.
            seed: Of which drafts hold.
            drafts: Whether the small model drafts.
        """
        super().__init__(machine, rows, seed)
        self.busy = {"small": 0.0, "large": 0.0}
        self._drafts = drafts
        self._rule = OverlappedTurns(self._turns if drafts else None)

    def run(self) -> OverlappedSimulation:
        """To the end of all rows."""
        while self.rows:
            small, large = self._by_model(self.rows)
            turn = self._rule.choose(len(small), [self._waiting(row) for row in large])
            assert turn is not None
            if turn.model == "small":
                self._small(small, [large[place] for place in turn.drafting])
            else:
                self._fly(large)
            self.rows = [row for row in self.rows if row.steps]
        return self

    def _by_model(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        own = [row for row in rows if row.steps]
        return (
            [row for row in own if not row.waits_for_large],
            [row for row in own if row.waits_for_large],
        )

    def _fly(self, large: Sequence[Row]) -> None:
        """A pass of the large model, and those of the small one until it is over."""
        began = self.time
        lands = began + self.machine.cost("large", sum(1 + len(row.drafts) for row in large))
        flying = {id(row) for row in large}
        while self.time < lands:
            small, waiting = self._by_model([r for r in self.rows if id(r) not in flying])
            turn = self._rule.beside(len(small), [self._waiting(row) for row in waiting])
            if turn is None:
                break
            self._small(small, [waiting[place] for place in turn.drafting])
        after = max(self.time, lands)
        self.time = began
        self._large(large)  # which adds its own time
        self.time = after

    def _small(self, small: Sequence[Row], drafting: Sequence[Row]) -> None:
        super()._small(small, drafting)
        if not self._drafts:
            for row in small:
                row.drafts.clear()

    def _over(self, model: str, tokens: int, written: int) -> None:
        super()._over(model, tokens, written)
        self.busy[model] += self.machine.cost(model, tokens)


def gains(machine: Machine, count: int, hard: float) -> dict[str, float]:
    """Speed over turns on one device, and shares of busy time; medians of some batches."""
    in_turn: dict[bool, Callable[[int], float]] = {
        False: lambda seed: without_drafts(machine, rows_of(count, hard, seed)),
        True: lambda seed: Simulation(machine, rows_of(count, hard, seed), seed).run().time,
    }
    found: dict[str, list[float]] = {}
    for seed in range(5):
        for drafts, one in in_turn.items():
            rows = rows_of(count, hard, seed)
            two = OverlappedSimulation(machine, rows, seed, drafts=drafts).run()
            way = "with drafts" if drafts else "routed"
            found.setdefault(way, []).append(one(seed) / two.time)
            for name, busy in two.busy.items():
                found.setdefault(f"{way}, {name} busy", []).append(busy / two.time)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Prints a table."""
    print("Predicted from the costs of passes, not measured.")
    print(f"{'':16s} {'hard':>5s} {'rows':>5s}  two devices over one")
    for name, machine in MACHINES.items():
        for hard in (0.15, 0.25):
            for count in (1, 4, 16, 64):
                found = gains(machine, count, hard)
                shown = "; ".join(f"{way} {gain:.2f}" for way, gain in found.items())
                print(f"{name:16s} {hard:5.2f} {count:5d}  {shown}")


if __name__ == "__main__":
    main()
