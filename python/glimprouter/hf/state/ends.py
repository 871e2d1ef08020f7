"""Where the forward passes of a sequence ended: what is computed again comes to the same bits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

# Tokens that are computed again at most, where a snapshot is still kept.
SNAPSHOT_SPAN = 64


class PassEnds:
    """Lengths at which passes ended, ascending.

    Matrix products round by the number of rows: only in the same pieces do the same bits come.
    """

    def __init__(self, ends: Iterable[int] = ()) -> None:
        """These."""
        self._ends = list(ends)

    def __iter__(self) -> Iterator[int]:
        """All of them."""
        return iter(self._ends)

    def up_to(self, start: int, end: int) -> list[int]:
        """Where the passes from ``start`` end, the last one at ``end``; several only again."""
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, end)
        return [*self._ends[first:last], end]

    def add(self, end: int) -> None:
        """A pass ended here; perhaps again."""
        place = bisect_left(self._ends, end)
        if place == len(self._ends) or self._ends[place] != end:
            self._ends.insert(place, end)

    def cut(self, length: int) -> None:
        """Keeps those within so many tokens."""
        del self._ends[bisect_right(self._ends, length) :]
