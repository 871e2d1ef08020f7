"""What the page at ``/`` shows: the last sequences while they are written."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimprouter.serve.answers import server_sent
from glimprouter.serve.errors import Failure

if TYPE_CHECKING:
    from glimprouter.hf import Event

PAGE = Path(__file__).parent / "page.html"
_KEPT = 24  # sequences
_PROMPT_CHARACTERS = 400
_BATCHES = 256  # that a viewer may be behind
_VIEWERS = 16


class LiveView:
    """Small updates of each sequence, for whoever looks on; the last sequences for who comes."""

    def __init__(self) -> None:
        """Nobody looks on, and nothing was written."""
        self._kept: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        self._new: list[dict[str, Any]] = []
        self._viewers: set[asyncio.Queue[list[dict[str, Any]] | None]] = set()

    def begin(self, ticket: int, prompt: str | None) -> None:
        """A sequence that waits."""
        shown = "(token ids)" if prompt is None else prompt[:_PROMPT_CHARACTERS]
        self._kept[ticket] = []
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        self._add(ticket, {"kind": "begin", "prompt": shown})

    def note(self, ticket: int, event: Event | Failure) -> None:
        """Something that happened to it."""
        if isinstance(event, Failure):
            self._add(ticket, {"kind": "end", "reason": "failed"})
        elif event.kind == "route":
            self._add(
                ticket,
                {"kind": "route", "model": event.model, "entropy": round(event.entropy or 0.0, 4)},
            )
        elif event.kind == "token" and event.text:
            self._add(ticket, {"kind": "text", "model": event.model, "text": event.text})
        elif event.kind == "answer_start":
            self._add(ticket, {"kind": "answer"})
        elif event.kind == "done" and event.result is not None:
            self._add(ticket, {"kind": "end", "reason": event.result.trace.end_reason})

    def _add(self, ticket: int, update: dict[str, Any]) -> None:
        update["id"] = ticket
        if (kept := self._kept.get(ticket)) is not None:
            last = kept[-1] if kept else {}
            joined = update["kind"] == "text" == last.get("kind")
            if joined and update["model"] == last["model"]:
                kept[-1] = {**last, "text": last["text"] + update["text"]}
            else:
                kept.append(update)
        if self._viewers:
            self._new.append(update)

    def publish(self) -> None:
        """Hands out what is new; a viewer who is far behind begins anew."""
        if not self._new:
            return
        for viewer in list(self._viewers):
            if viewer.qsize() < _BATCHES:
                viewer.put_nowait(self._new)
            else:
                self._viewers.discard(viewer)
                viewer.put_nowait(None)
        self._new = []

    def close(self) -> None:
        """Sends all viewers away: the server stops."""
        for viewer in self._viewers:
            viewer.put_nowait(None)
        self._viewers.clear()

    @property
    def is_full(self) -> bool:
        """Whether nobody else may look on."""
        return len(self._viewers) >= _VIEWERS

    async def updates(self, totals: dict[str, int]) -> AsyncIterator[bytes]:
        """Server-sent events: what there is, then what is new.

        Args:
            totals: Tokens by writer since the server began; read as they change.
        """
        viewer: asyncio.Queue[list[dict[str, Any]] | None] = asyncio.Queue()
        self.publish()  # to those before: what was kept has it, too
        self._viewers.add(viewer)
        try:
            kept = [dict(update) for updates in self._kept.values() for update in updates]
            yield server_sent({"totals": totals, "updates": kept})
            while (new := await viewer.get()) is not None:
                yield server_sent({"totals": totals, "updates": new})
        finally:
            self._viewers.discard(viewer)
