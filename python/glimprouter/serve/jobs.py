"""What a server has written for it, and what it needs of whoever writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from glimprouter.serve.errors import Failure

if TYPE_CHECKING:
    from glimprouter.hf import Event, RunUsage

STOPS = Failure("the server stops; send the request again later", 503)
FAILED = Failure("the engine failed; the request can be sent again", 500)
STOPPED = Failure("the engine has stopped; the server must be started again", 500)


@dataclass(frozen=True)
class Job:
    """A sequence to be written.

    Attributes:
        name: Of the request and the choice; a saved sequence is called so.
        prompt: As ``Run.add`` takes it.
        seed: Likewise.
        substream: Likewise.
        overrides: Likewise.
    """

    name: str
    prompt: Any
    seed: int
    substream: int
    overrides: Mapping[str, Any] = field(default_factory=dict)


class Accepted:
    """A sequence that the run has taken; it waits for a row, or has one."""


ACCEPTED = Accepted()
Delivery: TypeAlias = "tuple[int, Event | Failure | Accepted]"


class Writer(Protocol):
    """Writes sequences in a thread of its own; what happens is delivered by their tickets."""

    @property
    def alive(self) -> bool:
        """Whether sequences are written; false once something went wrong that nobody expected."""

    @property
    def usage(self) -> RunUsage | None:
        """What the run held last."""

    @property
    def unavailable(self) -> str | None:
        """Why no sequence is taken now; None where it is."""

    def health(self) -> dict[str, Any]:
        """What else ``/health`` says."""

    def start(self) -> None:
        """Returns once sequences may come."""

    def submit(self, ticket: int, job: Job) -> None:
        """Adds a sequence; what happens to it is delivered with this ticket, its end last."""

    def cancel(self, ticket: int) -> None:
        """Ends a sequence, if it has not ended; its end is delivered, too."""

    def stop(self) -> None:
        """Ends, or saves, all sequences now, and the thread."""

    def join(self, seconds: float | None = None) -> None:
        """Waits for the end of the thread."""
