"""What a server allows, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits and names of a server.

    Attributes:
        model_name: What requests name.
        api_key: That requests must bring; None for none.
        allowed_hosts: Names that requests may be sent to, without ports; none of them for any.
        max_waiting: Sequences that may wait for a row; beyond, requests are answered with 429.
        max_choices: Sequences of one request (``n`` of each prompt).
        max_body_bytes: Size of a request.
        max_connections: Open at a time; further ones are closed.
        idle_seconds: That a connection may take to send a request.
        send_seconds: After so long without reading anything a client is dropped.
        stop_seconds: That running sequences have to end when the server stops; None: as long as
            they take.
        save_dir: Where running sequences are saved when the server stops, instead of ending.
        live_view: Whether the page at ``/`` shows what is being written.
    """

    model_name: str = "glimprouter"
    api_key: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    max_waiting: int = 256
    max_choices: int = 16
    max_body_bytes: int = 4 * 2**20
    max_connections: int = 512
    idle_seconds: float = 30.0
    send_seconds: float = 60.0
    stop_seconds: int | None = None
    save_dir: Path | None = None
    live_view: bool = True
