"""A run over some prompts on two engines: its events, and what may be done to its sequences."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from glimprouter.config import check_random_key
from glimprouter.hf.pair.prompts import Prompt
from glimprouter.hf.run.begin import Beginnings
from glimprouter.hf.run.usage import RunUsage
from glimprouter.hf.sequence.events import Event
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.trace import Trace
from glimprouter.vllm.engines.base import EngineLost, EngineRefused
from glimprouter.vllm.loop_thread import LoopThread
from glimprouter.vllm.mirror import GateDisagrees, Mirror
from glimprouter.vllm.pair import EnginePair
from glimprouter.vllm.sequence import InvalidLogits, RoutedSequence, SequenceFailed, load_sequence

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _in_its_loop(
    method: Callable[Concatenate[EngineRun, _Arguments], _Result],
) -> Callable[Concatenate[EngineRun, _Arguments], _Result]:
    """In the event loop of the run, from whatever thread it is called."""

    @functools.wraps(method)
    def call(run: EngineRun, /, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        if run._thread is None:
            return method(run, *arguments, **named)
        return run._thread.do(lambda: method(run, *arguments, **named))

    return call


class EngineRun:
    """Iterates over :class:`glimprouter.hf.Event`, with ``async for`` or with ``for``.

    Prompts wait for a free row. Between two events, or two calls of :meth:`step`, sequences may be
    added, saved and cancelled; the others do not notice.

    Attributes:
        saved: By index, the sequences that ended because an engine stayed away, or would not: for
            :meth:`RoutedEngines.resume`.
        missed: Of these, the model whose engine it was.
        refused: Of these, the ones whose engine answered, and would not.
        disagreed: Sequences that ended because gate and router were at different places.
    """

    def __init__(
        self,
        pair: EnginePair,
        mirror: Mirror,
        common: Beginnings,
        *,
        max_sequences: int,
        patience: float,
        raise_on_invalid: bool,
        thread: LoopThread | None,
    ) -> None:
        """Of no sequences; made in the event loop of the engines.

        Args:
            pair: The engines.
            mirror: The router.
            common: Of all sequences.
            max_sequences: In flight.
            patience: Seconds that an engine may stay away.
            raise_on_invalid: Whether invalid logits raise, or only end their sequence.
            thread: Of the event loop, where the caller is in none.
        """
        self.saved: dict[int, bytes] = {}
        self.missed: dict[int, str] = {}
        self.refused: set[int] = set()
        self.disagreed: set[int] = set()
        self.pair, self.mirror = pair, mirror
        self._common = common
        self._max_sequences = max_sequences
        self._patience = patience
        self._raises = raise_on_invalid
        self._thread = thread
        self._rows = asyncio.Semaphore(max_sequences)
        self._sequences: dict[int, RoutedSequence] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}  # of sequences that have not ended
        self._next_index = 0
        self._unread: deque[Event] = deque()
        self._news = asyncio.Event()
        self._fault: BaseException | None = None
        self._over = False

    def begin(
        self, records: Sequence[SequenceRecord], options: Sequence[Mapping[str, Any]]
    ) -> None:
        """Begins new sequences, with ``options[i]`` of ``StepRouter.open`` for ``records[i]``."""
        for record, own in zip(records, options, strict=True):
            take_row = functools.partial(self.mirror.open, own)
            self._start(RoutedSequence(record, take_row, self.pair, self.mirror, self._tell))

    @_in_its_loop
    def load(self, saved: bytes) -> int:
        """Goes on with a saved sequence, with its own options.

        Returns:
            Its index in this run.

        Raises:
            TypeError: No bytes.
            ValueError: Foreign or damaged bytes, or those of another pair.
        """
        options = dict(self._common.record_options)
        sequence = load_sequence(
            saved, self._next_index, options, self.pair, self.mirror, self._tell
        )
        self._start(sequence)
        return sequence.record.index

    @_in_its_loop
    def add(
        self,
        /,
        prompt: Prompt,
        seed: int = 0,
        *,
        substream: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> int:
        """A prompt more: it joins the others as soon as there is a free row.

        Args:
            prompt: As in :meth:`RoutedEngines.generate`.
            seed: In [0, 2^64).
            substream: Random key, in [0, 2^64); None for the index. A prompt alone in its run has
                the index 0.
            chat_template_kwargs: Handed to both chat templates.
            **overrides: Fields of :class:`glimprouter.RouterConfig` for this sequence.

        Returns:
            Index of the sequence.

        Raises:
            TypeError: No prompt, or an option that is none, or of another type.
            ValueError: As in :meth:`RoutedEngines.generate`. Nothing has changed.
            RuntimeError: The run was closed, or has failed.
        """
        for name, key in (("seed", seed), ("substream", substream)):
            if key is not None or name == "seed":
                check_random_key(name, key)
        if self._over:
            raise RuntimeError("this run is over; begin another")
        records, options = self._common.begin(
            [prompt], [int(seed)], chat_template_kwargs, self._next_index, substream, overrides
        )
        self.begin(records, options)
        return records[0].index

    @_in_its_loop
    def cancel(self, sequence: int) -> None:
        """Ends a sequence now, and its request; its last events follow as always.

        The trace's ``end_reason`` is ``"cancelled"``.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended.
        """
        own = self._known(sequence)
        if sequence not in self._tasks:
            raise ValueError(f"sequence {sequence} has ended")
        own.interrupted = True
        self._tasks[sequence].cancel()
        if own.row < 0:  # a task that has not begun does not hear of it
            self._end(sequence, own)

    @_in_its_loop
    def save(self, sequence: int) -> bytes:
        """All of a sequence, for :meth:`RoutedEngines.resume`; it goes on here.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended, or not begun.
        """
        own = self._known(sequence)
        if sequence not in self._tasks or own.row < 0:
            state = "has not begun" if sequence in self._tasks else "has ended"
            raise ValueError(f"sequence {sequence} {state}: there is nothing to save")
        return own.save()

    @_in_its_loop
    def release(self, sequence: int) -> None:
        """Forgets a sequence that has ended; a run that goes on for weeks would grow without it.

        Raises:
            IndexError: No such sequence, or it was released.
            ValueError: It has not ended.
        """
        self._known(sequence)
        if sequence in self._tasks:
            raise ValueError(f"sequence {sequence} has not ended")
        del self._sequences[sequence]
        self.saved.pop(sequence, None)
        self.missed.pop(sequence, None)
        self.refused.discard(sequence)
        self.disagreed.discard(sequence)

    @_in_its_loop
    def usage(self) -> RunUsage:
        """What the run holds now; memory is the engines' own."""
        begun = sum(self._sequences[index].row >= 0 for index in self._tasks)
        return RunUsage(self._max_sequences, begun, 0, len(self._tasks) - begun, None)

    @property
    def sequences(self) -> list[int]:
        """Sequences that have not ended, ascending."""
        return sorted(self._tasks)

    @_in_its_loop
    def trace(self, sequence: int) -> Trace:
        """The trace of a sequence so far.

        Raises:
            IndexError: No such sequence.
        """
        return self._known(sequence).record.interrupted_trace()

    def _known(self, sequence: int) -> RoutedSequence:
        if sequence not in self._sequences:
            raise IndexError(f"there is no sequence {sequence} in this run")
        return self._sequences[sequence]

    def _start(self, sequence: RoutedSequence) -> None:
        index = self._next_index
        self._next_index += 1
        self._sequences[index] = sequence
        self._tasks[index] = asyncio.ensure_future(self._play(index, sequence))

    async def _play(self, index: int, sequence: RoutedSequence) -> None:
        """A sequence from its row to its end."""
        try:
            async with self._rows:
                sequence.begin()
                try:
                    await self._write(sequence)
                finally:
                    sequence.end()
        except asyncio.CancelledError:
            if self._over or index not in self._tasks:
                raise
        except BaseException as error:
            self._fail_all(error)
            return
        try:
            self._end(index, sequence)
        except Exception as error:  # else whoever waits for its end waits for ever
            self._fail_all(error)

    def _end(self, index: int, sequence: RoutedSequence) -> None:
        if not sequence.record.done:
            self._tell(sequence.record.finish("cancelled"))
        del self._tasks[index]
        self._tell([sequence.done_event()])

    async def _write(self, sequence: RoutedSequence) -> None:
        record = sequence.record
        try:
            await sequence.write(self._patience)
        except (EngineLost, EngineRefused) as error:
            self.saved[record.index] = sequence.save()
            self.missed[record.index] = sequence.turn
            if isinstance(error, EngineRefused):
                self.refused.add(record.index)
            self._fail(record, str(error))
        except InvalidLogits as error:
            if self._raises:
                raise RuntimeError(
                    f"sequence {record.index}: {error}; RoutedEngines(on_invalid='end') ends such"
                    " sequences without an exception"
                ) from error
            self._fail(record, str(error))
        except GateDisagrees as error:
            self.disagreed.add(record.index)
            self._fail(record, str(error))
        except SequenceFailed as error:
            self._fail(record, str(error))

    def _fail(self, record: SequenceRecord, message: str) -> None:
        self._tell(record.finish("error", f"sequence {record.index}: {message}"))

    def _fail_all(self, error: BaseException) -> None:
        """Whoever iterates gets the error, once."""
        if not self._over:
            self._over = True
            self._fault = error
            self._news.set()
            self._cancel_all()

    def _cancel_all(self) -> list[asyncio.Task[None]]:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for sequence in self._sequences.values():
            sequence.interrupted = True
        return tasks

    def _tell(self, events: Sequence[Event]) -> None:
        """Hands events to whoever iterates."""
        self._unread.extend(events)
        self._news.set()

    async def _wait(self) -> None:
        """Until there are events, or none will come.

        Raises:
            RuntimeError: Invalid logits with ``on_invalid="raise"``.
        """
        while not (self._unread or self._over) and self._tasks:
            self._news.clear()
            await self._news.wait()
        if not self._unread and self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def __aiter__(self) -> AsyncIterator[Event]:
        """The events that have not been taken yet."""
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            StopAsyncIteration: All sequences have ended.
            RuntimeError: Invalid logits with ``on_invalid="raise"``.
        """
        await self._wait()
        if not self._unread:
            raise StopAsyncIteration
        return self._unread.popleft()

    async def astep(self) -> list[Event]:
        """Waits for the next event.

        Returns:
            All events that have not been taken; empty when every sequence has ended.

        Raises:
            RuntimeError: As in :meth:`__anext__`.
        """
        await self._wait()
        events = list(self._unread)
        self._unread.clear()
        return events

    def __iter__(self) -> Iterator[Event]:
        """The run itself, where the caller is in no event loop.

        Raises:
            RuntimeError: The run was begun in an event loop: use ``async for``.
        """
        self._own_thread()
        return self

    def __next__(self) -> Event:
        """The next event; see :meth:`__anext__`."""
        event = self._own_thread().call(self._next())
        if event is None:
            raise StopIteration
        return event

    def step(self) -> list[Event]:
        """As :meth:`astep`, where the caller is in no event loop."""
        return self._own_thread().call(self.astep())

    def _own_thread(self) -> LoopThread:
        if self._thread is None:
            raise RuntimeError(
                "this run belongs to an event loop: iterate it with async for, or use astep"
            )
        return self._thread

    async def _next(self) -> Event | None:
        return await anext(self, None)

    async def aclose(self) -> None:
        """Ends the run, and the requests that are under way."""
        self._over = True
        self._news.set()
        await asyncio.gather(*self._cancel_all(), return_exceptions=True)
        self._unread.clear()
        self._fault = None

    def close(self) -> None:
        """As :meth:`aclose`, where the caller is in no event loop."""
        if self._thread is not None:
            self._thread.call(self.aclose())
