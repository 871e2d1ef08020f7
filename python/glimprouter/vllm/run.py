"""A run over some prompts on two engines: its events, and what is left where one stayed away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from glimprouter.hf.sequence.events import Event
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.trace import Trace
from glimprouter.vllm.engines.base import EngineLost, EngineRefused
from glimprouter.vllm.loop_thread import LoopThread
from glimprouter.vllm.mirror import GateDisagrees, Mirror
from glimprouter.vllm.pair import EnginePair
from glimprouter.vllm.sequence import InvalidLogits, RoutedSequence, SequenceFailed, load_sequence

# What opens a sequence, once there is a row for it.
Opening = Callable[["EngineRun", int], RoutedSequence]


class EngineRun:
    """Iterates over :class:`glimprouter.hf.Event`, with ``async for`` or with ``for``.

    Attributes:
        saved: By index, the sequences that ended because an engine stayed away, or would not: for
            :meth:`RoutedEngines.resume`.
    """

    def __init__(
        self,
        pair: EnginePair,
        mirror: Mirror,
        openings: Sequence[Opening],
        *,
        max_sequences: int,
        patience: float,
        raise_on_invalid: bool,
        thread: LoopThread | None,
    ) -> None:
        """Begins at once; made in the event loop of the engines.

        Args:
            pair: The engines.
            mirror: The router.
            openings: One a sequence.
            max_sequences: In flight.
            patience: Seconds that an engine may stay away.
            raise_on_invalid: Whether invalid logits raise, or only end their sequence.
            thread: Of the event loop, where the caller is in none.
        """
        self.saved: dict[int, bytes] = {}
        self.pair, self.mirror = pair, mirror
        self._patience = patience
        self._raises = raise_on_invalid
        self._thread = thread
        self._rows = asyncio.Semaphore(max_sequences)
        self._events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._sequences: dict[int, RoutedSequence] = {}
        self._over = False
        self._task = asyncio.ensure_future(self._play(openings))

    def tell(self, events: Sequence[Event]) -> None:
        """Hands events to whoever iterates."""
        for event in events:
            self._events.put_nowait(event)

    async def _play(self, openings: Sequence[Opening]) -> None:
        tasks = [
            asyncio.ensure_future(self._one(index, opening))
            for index, opening in enumerate(openings)
        ]
        try:
            await asyncio.gather(*tasks)
            self._events.put_nowait(None)
        except BaseException as error:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._events.put_nowait(error)
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _one(self, index: int, opening: Opening) -> None:
        async with self._rows:
            sequence = opening(self, index)
            self._sequences[index] = sequence
            try:
                await self._write(sequence)
            finally:
                self.mirror.close(sequence.row)

    async def _write(self, sequence: RoutedSequence) -> None:
        record = sequence.record
        try:
            await sequence.write(self._patience)
        except (EngineLost, EngineRefused) as error:
            self.saved[record.index] = sequence.save()
            self._fail(record, str(error))
        except InvalidLogits as error:
            if self._raises:
                raise RuntimeError(
                    f"sequence {record.index}: {error}; RoutedEngines(on_invalid='end') ends such"
                    " sequences without an exception"
                ) from error
            self._fail(record, str(error))
        except (SequenceFailed, GateDisagrees) as error:
            self._fail(record, str(error))
        self.tell([sequence.done_event()])

    def _fail(self, record: SequenceRecord, message: str) -> None:
        self.tell(record.finish("error", f"sequence {record.index}: {message}"))

    def __aiter__(self) -> AsyncIterator[Event]:
        """The run itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            StopAsyncIteration: All sequences have ended.
            RuntimeError: Invalid logits with ``on_invalid="raise"``.
        """
        if self._over:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, Event):
            return event
        self._over = True
        if event is None:
            raise StopAsyncIteration
        raise event

    def __iter__(self) -> Iterator[Event]:
        """The run itself, where the caller is in no event loop.

        Raises:
            RuntimeError: The run was begun in an event loop: use ``async for``.
        """
        if self._thread is None:
            raise RuntimeError("this run belongs to an event loop: iterate it with async for")
        return self

    def __next__(self) -> Event:
        """The next event; see :meth:`__anext__`."""
        if self._thread is None:
            raise RuntimeError("this run belongs to an event loop: iterate it with async for")
        event = self._thread.call(self._next())
        if event is None:
            raise StopIteration
        return event

    async def _next(self) -> Event | None:
        return await anext(self, None)

    def trace(self, sequence: int) -> Trace:
        """The trace of a sequence so far.

        Raises:
            IndexError: It has not begun.
        """
        if sequence not in self._sequences:
            raise IndexError(f"sequence {sequence} has not begun")
        return self._sequences[sequence].record.interrupted_trace()

    async def aclose(self) -> None:
        """Ends the run, and the requests that are under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._over = True

    def close(self) -> None:
        """As :meth:`aclose`, where the caller is in no event loop."""
        if self._thread is not None:
            self._thread.call(self.aclose())


def opening_of(record: SequenceRecord, options: Mapping[str, Any]) -> Opening:
    """Opens a new sequence."""

    def opening(run: EngineRun, _: int) -> RoutedSequence:
        return RoutedSequence(record, run.mirror.open(options), run.pair, run.mirror, run.tell)

    return opening


def opening_of_saved(saved: bytes, record_options: dict[str, Any]) -> Opening:
    """Goes on with a saved sequence."""

    def opening(run: EngineRun, index: int) -> RoutedSequence:
        return load_sequence(saved, index, record_options, run.pair, run.mirror, run.tell)

    return opening
