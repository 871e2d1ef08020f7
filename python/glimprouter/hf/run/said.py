"""What the router said of the sequences of a pass, as Python values."""

from __future__ import annotations

from typing import NamedTuple

from glimprouter.glimpse import Status
from glimprouter.hf.sequence.record import SequenceRecord, Signals
from glimprouter.router import StepOutputs

Entry = tuple[Status, Signals]


class Said(NamedTuple):
    """What the router said of one sequence of a pass.

    Attributes:
        model: Whose pass.
        record: The sequence.
        entries: Status and signals of each row of logits that counted, in order.
        held: Drafts that held.
        seconds: The sequence's share of the pass.
    """

    model: str
    record: SequenceRecord
    entries: list[Entry]
    held: int
    seconds: float


def read_entries(outputs: StepOutputs, count: int) -> list[Entry]:
    """The first entries of a call's outputs, in order.

    Args:
        outputs: Of the call.
        count: How many there are.
    """
    names = ("token", "route", "phase", "end_reason", "forced", "entropy", "room")
    columns = (getattr(outputs, name)[:count].tolist() for name in ("status", *names))
    return [(Status(status), Signals(*values)) for status, *values in zip(*columns, strict=True)]
