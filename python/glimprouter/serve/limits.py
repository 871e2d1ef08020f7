"""Connections that cost the server nothing: so many, and none that says nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded_protocol(most: int, idle_seconds: float) -> type[asyncio.Protocol]:
    """A protocol that closes further connections, and those that send no request.

    Args:
        most: Connections at a time.
        idle_seconds: Until the head of the first request must be there.
    """

    class BoundedProtocol(H11Protocol):
        """Of uvicorn, with both bounds."""

        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
                return
            self._patience = self.loop.call_later(idle_seconds, self._give_up)

        def _give_up(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._patience is not None:
                self._patience.cancel()
            super().connection_lost(exc)

    return BoundedProtocol
