"""What the page at ``/`` shows: the last sequences while they are written."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.responses import StreamingResponse

from glimprouter.serve.answers import server_sent
from glimprouter.serve.errors import Failure

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from glimprouter.hf import Event

PAGE = Path(__file__).parent / "page.html"
_KEPT = 24  # sequences
_PROMPT_CHARACTERS = 400
_BATCHES = 256  # that a viewer may be behind
_VIEWERS = 16
Viewer: TypeAlias = "asyncio.Queue[list[dict[str, Any]] | None]"  # None: it is over


class LiveView:
    """Small updates of each sequence, for whoever looks on; the last sequences for who comes."""

    def __init__(self) -> None:
        """Nobody looks on, and nothing was written."""
        self._kept: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        self._new: list[dict[str, Any]] = []
        self._viewers: set[Viewer] = set()
        self._closed = False

    def begin(self, ticket: int, prompt: str | None) -> None:
        """A sequence that waits."""
        shown = "(token ids)" if prompt is None else prompt[:_PROMPT_CHARACTERS]
        self._kept[ticket] = []
        self._add(ticket, {"kind": "begin", "prompt": shown})
        while len(self._kept) > _KEPT:
            self._kept.pop(min(self._kept, key=self._worth))

    def _worth(self, ticket: int) -> int:
        """Least for what has ended, then for what waits; the first of equals was silent longest."""
        kept = self._kept[ticket]
        return 0 if kept[-1]["kind"] == "end" else 1 if len(kept) == 1 else 2

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
            self._kept.move_to_end(ticket)
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
        """Sends all viewers away, and those who come later: the server stops."""
        self._closed = True
        for viewer in self._viewers:
            viewer.put_nowait(None)
        self._viewers.clear()

    def join(self) -> Viewer | None:
        """A place to look on from, until :meth:`leave`; None where there is none."""
        if self._closed or len(self._viewers) >= _VIEWERS:
            return None
        self.publish()  # to those before: what was kept has it, too
        viewer: Viewer = asyncio.Queue()
        viewer.put_nowait([dict(update) for updates in self._kept.values() for update in updates])
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Gives a place back."""
        self._viewers.discard(viewer)


class Feed(StreamingResponse):
    """Server-sent events for one viewer: what there is, then what is new."""

    def __init__(
        self, live: LiveView, viewer: Viewer, totals: dict[str, int], headers: dict[str, str]
    ) -> None:
        """Of a viewer who has joined.

        Args:
            live: What is looked at.
            viewer: The place.
            totals: Tokens by writer since the server began; read as they change.
            headers: Of the response.
        """
        super().__init__(
            self._updates(viewer, totals), media_type="text/event-stream", headers=headers
        )
        self._live, self._viewer = live, viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until one of both sides ends; also one that ends before it begins leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.leave(self._viewer)

    @staticmethod
    async def _updates(viewer: Viewer, totals: dict[str, int]) -> AsyncIterator[bytes]:
        while (new := await viewer.get()) is not None:
            yield server_sent({"totals": totals, "updates": new})
