"""The step that is being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby


@dataclass(slots=True)
class RunningStep:
    """A step of the thinking that has not ended.

    Attributes:
        start: Index of its first generated id.
        model: Who writes it.
        entropy: Of its glimpse, nats; None before there is one.
        seconds: So far.
        drafted: Places in the step that the small model had drafted.
        rewritten: Tokens of the small model that were dropped when the step was to be rewritten.
        withheld: Whether its events wait until a policy keeps it.
        decided: Tokens generated before the one that the small model began it with, white space
            aside; -1 where nobody gave it the step.
        score: That a policy gave what the small model had written; None for none.
    """

    start: int
    model: str = "small"
    entropy: float | None = None
    seconds: float = 0.0
    drafted: list[int] = field(default_factory=list)
    rewritten: int = 0
    withheld: bool = False
    decided: int = -1
    score: float | None = None

    def withhold(self, decided: int) -> None:
        """From here on events wait: the small model was given the step.

        Args:
            decided: Tokens generated so far.
        """
        self.decided = decided
        self.withheld = True


def runs_of(writers: Sequence[int]) -> list[int]:
    """Lengths of the runs of one writer, from the small model's on, which may be empty.

    Args:
        writers: Of the tokens, as indices of ``MODELS``.
    """
    runs = [len(list(run)) for _, run in groupby(writers)]
    return [0, *runs] if writers and writers[0] else runs
