"""What the router said of the sequences of a pass, as Python values."""

from __future__ import annotations

from dataclasses import dataclass

from glimprouter.glimpse import Status
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.signals import Signals
from glimprouter.policies import AsideReading
from glimprouter.router import StepOutputs

Entry = tuple[Status, Signals]


@dataclass(slots=True)
class Said:
    """What the router said of one sequence of a pass.

    Attributes:
        model: Whose pass.
        record: The sequence.
        entries: Status and signals of each row of logits that counted, in order.
        held: Drafts that held.
        seconds: The sequence's share of the pass.
        judged: Entries, the first so many, whose policy needs not be asked any more.
        rejected: Tokens of the step that is to be rewritten, from the one it was decided at; 0
            where none is.
        rewritten: Whether that is done: the only entry is the decision then.
        reading: What the large model said of the step that has ended; None before it has read it.
        fault: Why it cannot be read, which ends the sequence; None where it can.
        invalid: Whether that is a fault of its logits.
    """

    model: str
    record: SequenceRecord
    entries: list[Entry]
    held: int
    seconds: float
    judged: int = 0
    rejected: int = 0
    rewritten: bool = False
    reading: AsideReading | None = None
    fault: str | None = None
    invalid: bool = False


def read_entries(outputs: StepOutputs, count: int) -> list[Entry]:
    """The first entries of a call's outputs, in order.

    Args:
        outputs: Of the call.
        count: How many there are.
    """
    names: tuple[str, ...] = ("token", "route", "phase", "end_reason", "forced", "entropy", "room")
    if outputs.logprob is not None:
        names = (*names, "logprob")
    columns = (getattr(outputs, name)[:count].tolist() for name in ("status", *names))
    return [(Status(status), Signals(*values)) for status, *values in zip(*columns, strict=True)]
