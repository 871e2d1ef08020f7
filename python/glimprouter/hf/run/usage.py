"""What a run holds at a moment."""

from __future__ import annotations

from dataclasses import dataclass

from glimprouter.hf.sequence.events import PageUsage


@dataclass(frozen=True, slots=True)
class RunUsage:
    """Sequences and memory of a run.

    Attributes:
        rows: Sequences that may be in flight.
        running: Sequences in memory.
        preempted: Sequences that have begun, and are in host memory until there is room.
        waiting: Sequences that have not begun.
        memory: Of keys and values; None where the engine has no pages.
    """

    rows: int
    running: int
    preempted: int
    waiting: int
    memory: PageUsage | None
