"""How much of an arena the sequences of a run need."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from glimprouter.kv import KvLayout, PagePool

_NULL_SECTORS = 1  # the first one, which padding reads and writes
_FEWEST_SECTORS = 2  # of the longest sequence, where none is known yet


class ArenaPlan:
    """Pages and sectors for tokens of the models that an arena serves.

    Attributes:
        layouts: Layouts of both models, also of one that has its pages elsewhere.
        sector_bytes: What the arena hands out at a time.
    """

    def __init__(self, layouts: Sequence[KvLayout], served: Collection[int] | None = None) -> None:
        """For models with these layouts.

        Args:
            layouts: Of both models.
            served: Which of them have their pages here; None for both.
        """
        self.layouts = list(layouts)
        self.sector_bytes = PagePool.default_sector_bytes(self.layouts)
        self._served = range(len(self.layouts)) if served is None else served

    def pages(self, tokens: Sequence[int], spare: int = 0) -> list[int]:
        """Pages here for so many tokens of each model, and so many more of each served one."""
        return [
            -(-count // layout.page_size) + spare if index in self._served else 0
            for index, (count, layout) in enumerate(zip(tokens, self.layouts, strict=True))
        ]

    def sectors(self, tokens: Sequence[int]) -> int:
        """Sectors for so many tokens of each model, in pages of its own."""
        in_a_sector = (self.sector_bytes // layout.page_bytes for layout in self.layouts)
        pages = self.pages(tokens)
        return sum(-(-count // held) for count, held in zip(pages, in_a_sector, strict=True))

    def check(self, arena_bytes: int, sectors: int) -> None:
        """Checks that an arena holds a sequence.

        Raises:
            ValueError: It does not.
        """
        needed = max(sectors + _NULL_SECTORS, self._fewest) * self.sector_bytes
        if arena_bytes < needed:
            raise ValueError(
                f"an arena of {arena_bytes} bytes cannot hold the longest sequence, which may need"
                f" {needed}; raise kv_memory_bytes, or lower the token budgets"
            )

    def wanted(
        self,
        lengths: Sequence[Sequence[int]],
        most_bytes: int,
        *,
        take_all: bool,
        max_sequences: int,
        spare_rows: bool,
        growth: int,
    ) -> int:
        """Sectors to reserve, null page included, capped by the memory that there is.

        Args:
            lengths: The most tokens of each sequence to come, for each model.
            most_bytes: The memory.
            take_all: Whether all of it is reserved, whatever is needed.
            max_sequences: Sequences in flight.
            spare_rows: Whether more sequences may come, each as long as the longest.
            growth: Factor of what the lengths ask for.

        Raises:
            ValueError: The memory cannot hold the longest sequence.
        """
        each = sorted(map(self.sectors, lengths), reverse=True)
        largest = each[0] if each else _FEWEST_SECTORS
        self.check(most_bytes, largest)
        most = most_bytes // self.sector_bytes
        if take_all:
            return most
        rows = each[:max_sequences]
        together = max_sequences * largest if spare_rows else max(sum(rows), largest)
        return min(most, max(growth * together + _NULL_SECTORS, self._fewest))

    @property
    def _fewest(self) -> int:
        """Sectors of any pool: one for each layout, whether it is served or not."""
        return len(self.layouts) + _NULL_SECTORS
