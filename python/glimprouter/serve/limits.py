"""Connections that cost the server nothing: so many, and none that says or takes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class _BoundedProtocol(H11Protocol):
    """Of uvicorn, with bounds on how many there are and on how long they keep others waiting."""

    most: int
    idle_seconds: float
    send_seconds: float
    _request_deadline: asyncio.TimerHandle | None = None
    _progress_check: asyncio.TimerHandle | None = None
    _unsent: int | None = None  # at the last check, where nothing can have been added since

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._await_request()
        self._check_later()

    def on_response_complete(self) -> None:
        self._unsent = None
        self._await_request()
        super().on_response_complete()

    def resume_writing(self) -> None:
        self._unsent = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._request_deadline, self._progress_check):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def _answers(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        """The next request has so long from now on, whatever bytes come meanwhile."""
        if self._request_deadline is not None:
            self._request_deadline.cancel()
        self._request_deadline = self.loop.call_later(self.idle_seconds, self._give_up)

    def _give_up(self) -> None:
        if self._answers:
            return  # the end of its answer sets the next deadline
        if self.transport.get_write_buffer_size():
            self._await_request()  # it still reads the last answer, or the other check ends it
        else:
            self.transport.abort()

    def _check_later(self) -> None:
        self._progress_check = self.loop.call_later(self.send_seconds, self._check_progress)

    def _check_progress(self) -> None:
        """Ends a connection whose client has read nothing since the last check."""
        full = self.flow.write_paused or not self._answers
        unsent = self.transport.get_write_buffer_size() if full else None
        if unsent and self._unsent is not None and unsent >= self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._check_later()


def bounded_protocol(most: int, idle_seconds: float, send_seconds: float) -> type[asyncio.Protocol]:
    """A protocol that closes further connections, and those that send or read nothing.

    Args:
        most: Connections at a time.
        idle_seconds: Until the head of the next request must be there.
        send_seconds: After so long (at most twice) without reading anything a client is dropped.
    """
    bounds = {"most": most, "idle_seconds": idle_seconds, "send_seconds": send_seconds}
    return type("BoundedProtocol", (_BoundedProtocol,), bounds)
