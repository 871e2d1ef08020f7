"""Whose turn it is where each model has a device of its own, and passes of both run at once.

While the large model's pass is computed, the small model goes on with all other rows, and drafts
for those that have come to wait for the large model meanwhile. Without drafts its device never
waits: a pass begins as soon as rows wait for it. With drafts it waits as long as on one device:
what the small model writes and drafts until then is worth more than a pass that verifies little
(benchmarks/two_devices_simulation.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from glimprouter.hf.run.drafted_turns import DraftedTurns, Turn, WaitingRow


class OverlappedTurns:
    """Decides pass by pass."""

    def __init__(self, drafted: DraftedTurns | None) -> None:
        """Nobody has waited.

        Args:
            drafted: What drafts are worth; None where the small model does not draft.
        """
        self._drafted = drafted

    def choose(self, small: int, large: Sequence[WaitingRow]) -> Turn | None:
        """The next pass, while no other is computed.

        Args:
            small: Rows that wait for the small model.
            large: Rows that wait for the large one.

        Returns:
            None when nobody waits.
        """
        if large and self._drafted is not None:
            return self._drafted.choose(small, large)
        if large:
            return Turn("large", [])
        return Turn("small", []) if small else None

    def beside(self, small: int, large: Sequence[WaitingRow]) -> Turn | None:
        """The small model's next pass while the large one computes.

        Args:
            small: Rows that wait for the small model.
            large: Rows that wait for the large one, and are not in its pass.

        Returns:
            None when there is nothing for it to do.
        """
        drafting = [] if self._drafted is None else self._drafted.worth_drafting(large)
        return Turn("small", drafting) if small or drafting else None
