"""A server in this process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from glimprouter.serve.app import Server
from glimprouter.serve.limits import bounded_protocol
from glimprouter.serve.options import ServerOptions

if TYPE_CHECKING:
    from glimprouter.serve.pair import ServedPair

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_SECONDS = 5.0  # to read how a sequence ended


class _Uvicorn(uvicorn.Server):
    """Stops at the first signal when all is said, at the second one soon; 0 either way.

    Sequences that have no more time end with an error that their clients read; only then are
    connections closed, whose clients did not.
    """

    def __init__(self, config: uvicorn.Config, own: Server) -> None:
        super().__init__(config)
        self._own = own
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the main thread, between two steps of its loop; or in another one."""
        self._signals += 1
        self.should_exit = True
        self._own.front.stopping = True
        if self._signals > 2:
            self.force_exit = True
        elif self._loop is not None and not self._loop.is_closed():
            step = self._begin_stop if self._signals == 1 else self._end_sequences
            self._loop.call_soon_threadsafe(step)

    def _begin_stop(self) -> None:
        assert self._loop is not None
        self._own.begin_stop()
        options = self._own.options
        if options.save_dir is not None:
            self._end_sequences()
        elif options.stop_seconds is not None:
            self._loop.call_later(options.stop_seconds, self._end_sequences)

    def _end_sequences(self) -> None:
        assert self._loop is not None
        self._own.front.engine.stop()
        self._loop.call_later(_LAST_SECONDS, self._abort_connections)

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def make_server(model: ServedPair, options: ServerOptions) -> uvicorn.Server:
    """A server of a pair, for a listening socket.

    Args:
        model: The pair.
        options: Limits and names.

    Raises:
        ValueError: There is not enough memory for the pair's keys and values; or engines that
            cannot serve, as ``RoutedEngines.check`` says.
        EngineLost: An engine does not answer.
    """
    from glimprouter.hf import RoutedModel

    if not isinstance(model, RoutedModel):
        model.check()
    own = Server(model, options)
    own.front.engine.start()
    config = uvicorn.Config(
        own.app,
        http=bounded_protocol(options.max_connections, options.idle_seconds, options.send_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    return _Uvicorn(config, own)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: The address is in use, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
