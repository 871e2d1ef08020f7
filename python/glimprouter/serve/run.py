"""A server in this process: its socket, its signals, its end."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from glimprouter.serve.app import Server
from glimprouter.serve.limits import bounded_protocol
from glimprouter.serve.options import ServerOptions

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Uvicorn(uvicorn.Server):
    """Stops at the first signal when all is said, at the second one at once; 0 either way."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
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
        """In the main thread, between two steps of its loop."""
        if self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True
            self._on_stop()


def make_server(model: RoutedModel, options: ServerOptions) -> uvicorn.Server:
    """A server of a pair, for a listening socket.

    Args:
        model: The pair.
        options: Limits and names.

    Raises:
        ValueError: There is not enough memory for the pair's keys and values.
    """
    own = Server(model, options)
    own.front.engine.start()
    config = uvicorn.Config(
        own.app,
        http=bounded_protocol(options.max_connections, options.idle_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=options.stop_seconds,
    )
    return _Uvicorn(config, own.begin_stop)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: The address is in use, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
