"""Between asyncio and the engine's thread: who waits, who is told, who has gone away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from glimprouter.serve.errors import Failure, RequestError
from glimprouter.serve.jobs import Accepted, Delivery, Job, Writer
from glimprouter.serve.metrics import ServerMetrics

if TYPE_CHECKING:
    from pathlib import Path

    from glimprouter.hf import Event
    from glimprouter.serve.live import LiveView
    from glimprouter.serve.options import ServerOptions
    from glimprouter.serve.pair import ServedPair

_RETRY_MOST = 60  # seconds that a client is asked to wait


class JobStream:
    """What happens to the sequences of one request."""

    def __init__(self, front: Front, tickets: Sequence[int]) -> None:
        """Of sequences that were submitted."""
        self._front = front
        self._places = {ticket: place for place, ticket in enumerate(tickets)}
        self._open = set(tickets)
        self._asked = set(tickets)  # which the engine has neither taken nor refused
        self._answered = asyncio.Event()
        self._begun = asyncio.Event()
        self._refusal: Failure | None = None
        self._closed = False
        self._unsent = 0  # sequences that have ended, and whose end was not sent yet
        self._told: asyncio.Queue[tuple[int, Event | Failure]] = asyncio.Queue()

    def tell(self, ticket: int, event: Event | Failure | Accepted) -> None:
        """Takes over what happened to one of them."""
        if ticket in self._asked:
            self._asked.discard(ticket)
            if isinstance(event, Failure):
                self._refusal = self._refusal or event
            if not self._asked:
                self._answered.set()
        if isinstance(event, Accepted):
            return
        if isinstance(event, Failure) or event.kind == "done":
            self._open.discard(ticket)
            if not self._closed:
                self._unsent += 1
                self._front.unsent += 1
        self._begun.set()
        self._told.put_nowait((self._places[ticket], event))

    async def taken(self) -> None:
        """Returns when the engine has taken all of them.

        Raises:
            RequestError: It has refused one.
        """
        await self._answered.wait()
        if self._refusal is not None:
            raise RequestError(self._refusal.message, status=self._refusal.status, code="engine")

    async def begins_within(self, seconds: float) -> bool:
        """Whether something has happened, once it has or that time is over."""
        try:
            await asyncio.wait_for(self._begun.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def next(self) -> tuple[int, Event | Failure]:
        """Which of the sequences, and what happened."""
        return await self._told.get()

    def cancel(self, place: int) -> None:
        """Ends one sequence; its end is told, too."""
        ticket = next(own for own, at in self._places.items() if at == place)
        if ticket in self._open:
            self._front.engine.cancel(ticket)

    def close(self) -> None:
        """Nobody listens any more: what still runs is cancelled."""
        self._closed = True
        self._front.unsent -= self._unsent
        self._unsent = 0
        for ticket in self._open:
            self._front.engine.cancel(ticket)


class Front:
    """Hands sequences to the engine, as many as may wait."""

    def __init__(
        self,
        model: ServedPair,
        options: ServerOptions,
        metrics: ServerMetrics,
        live: LiveView | None,
    ) -> None:
        """Nothing runs yet.

        Args:
            model: The pair.
            options: Of the server.
            metrics: Told what happens.
            live: Likewise; None where nobody may look on.
        """
        self.engine = _writer_of(model, self._deliver, options.save_dir)
        self.rows = model.max_sequences
        self.in_flight = 0  # reserved, waiting or running
        self.unsent = 0  # ended, but their clients have not read it all
        self.stopping = False
        self._most = model.max_sequences + options.max_waiting
        self._metrics = metrics
        self._live = live
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[int, tuple[JobStream, float]] = {}  # by ticket, with its beginning
        self._tickets = 0
        self._seconds = 1.0  # that a sequence takes, about

    def listen(self) -> None:
        """What the engine tells is heard in the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    @property
    def unavailable(self) -> str | None:
        """Why no sequence is taken now; None where it is."""
        return "the server stops" if self.stopping else self.engine.unavailable

    def reserve(self, count: int) -> None:
        """Room for so many sequences, until they have ended or :meth:`give_back`.

        Raises:
            RequestError: There is none: 429, and when to try again; or nothing is taken now.
        """
        if (what := self.unavailable) is not None:
            raise RequestError(what, status=503, code="unavailable")
        if count > self._most:
            raise RequestError(
                f"the request asks for {count} sequences, more than the {self._most} of this"
                " server",
                param="n",
            )
        held = self.in_flight + self.unsent
        if held + count > self._most:
            rounds = (held + count - self.rows) / self.rows
            seconds = min(_RETRY_MOST, max(1, math.ceil(rounds * self._seconds)))
            raise RequestError(
                f"{held} sequences run or wait, and this server takes {self._most};"
                f" try again in {seconds} s",
                status=429,
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        self.in_flight += count

    def give_back(self, count: int) -> None:
        """Room that was reserved, and is not needed."""
        self.in_flight -= count

    def submit(self, jobs: Sequence[Job]) -> JobStream:
        """Hands reserved sequences over."""
        tickets = list(range(self._tickets, self._tickets + len(jobs)))
        self._tickets += len(jobs)
        stream = JobStream(self, tickets)
        now = time.monotonic()
        for ticket, job in zip(tickets, jobs, strict=True):
            self._streams[ticket] = stream, now
            if self._live is not None:
                self._live.begin(ticket, getattr(job.prompt, "text", None))
            self.engine.submit(ticket, job)
        if self._live is not None:
            self._live.publish()
        return stream

    def _deliver(self, told: list[Delivery]) -> None:
        """In the engine's thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._dispatch, told)
        except RuntimeError:  # the loop was closed: nobody listens
            return

    def _dispatch(self, told: list[Delivery]) -> None:
        for ticket, event in told:
            if ticket not in self._streams:  # it has ended
                continue
            stream, began = self._streams[ticket]
            stream.tell(ticket, event)
            if isinstance(event, Accepted):
                continue
            self._metrics.note(ticket, event)
            if self._live is not None:
                self._live.note(ticket, event)
            if isinstance(event, Failure) or event.kind == "done":
                del self._streams[ticket]
                self.in_flight -= 1
                self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
        if self._live is not None:
            self._live.publish()

    async def stopped(self, seconds: float | None) -> None:
        """Waits for the engine's thread, which was told to stop.

        Args:
            seconds: At most.
        """
        join: Callable[..., Any] = self.engine.join
        await asyncio.to_thread(join, seconds)


def _writer_of(
    model: ServedPair, deliver: Callable[[list[Delivery]], None], save_dir: Path | None
) -> Writer:
    from glimprouter.hf import RoutedModel

    if isinstance(model, RoutedModel):
        from glimprouter.serve.engine_thread import EngineThread

        return EngineThread(model, deliver, save_dir)
    from glimprouter.serve.engines_loop import EnginesLoop

    return EnginesLoop(model, deliver, save_dir)
