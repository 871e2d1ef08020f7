"""A run over some prompts: its events, and what may be done to its sequences on the way."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from glimprouter.config import check_integer, check_random_key
from glimprouter.hf.run.loop import Loop
from glimprouter.hf.sequence.events import Event, Result
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.saved import SavedSequence
from glimprouter.trace import Trace

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _alone(
    method: Callable[Concatenate[Run, _Arguments], _Result],
) -> Callable[Concatenate[Run, _Arguments], _Result]:
    """One call of a run at a time; whoever calls has its router from then on."""

    @functools.wraps(method)
    def call(run: Run, /, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        with run._lock:
            run._sequences.router.attach()
            return method(run, *arguments, **named)

    return call


class Run:
    """Iterate over it for the events. Prompts wait for a free slot; finished ones leave theirs.

    Between two events, or two calls of :meth:`step`, a sequence may be forked, rewound, saved,
    cancelled, and another loaded; the others notice no more than the rounding of other batches.
    :meth:`trace` gives the record of any sequence at any time, also after an interrupt.

    A run may be handed from thread to thread, and calls of several threads wait for one another.
    """

    def __init__(
        self,
        loop: Loop,
        records: Sequence[SequenceRecord],
        options: Sequence[dict[str, object]],
    ) -> None:
        """Takes a fresh loop; ``options[i]`` opens ``records[i]``."""
        self._lock = threading.RLock()
        self._loop = loop
        self._sequences = loop.sequences
        for record, own in zip(records, options, strict=True):
            self._sequences.add_prompt(record, own)

    def __iter__(self) -> Iterator[Event]:
        """The events that have not been taken yet."""
        return self

    @_alone
    def __next__(self) -> Event:
        """The next event."""
        self._loop.compute()
        if not self._loop.unread:
            raise StopIteration
        return self._loop.unread.popleft()

    @_alone
    def step(self) -> list[Event]:
        """Goes on to the next event.

        Returns:
            All events that have not been taken; empty when every sequence has ended.
        """
        self._loop.compute()
        events = list(self._loop.unread)
        self._loop.unread.clear()
        return events

    def trace(self, sequence: int) -> Trace:
        """The record of a sequence so far.

        Raises:
            IndexError: No such sequence.
        """
        return self._sequences.record(sequence).interrupted_trace()

    def generated(self, sequence: int) -> list[int]:
        """Ids generated so far, each of its writer's vocabulary; also those of unread events.

        Raises:
            IndexError: No such sequence.
        """
        return list(self._sequences.record(sequence).generated)

    @property
    def sequences(self) -> list[int]:
        """Sequences that have not ended, ascending."""
        return self._sequences.unfinished()

    @_alone
    def fork(self, sequence: int, *, substream: int | None = None) -> int:
        """Copies a sequence; from here on the copy goes its own way.

        Its events begin with the tokens that it writes itself, or with the step that waits for a
        policy to keep it; its first step event and its result
        hold what came before, too.

        Args:
            sequence: One that has begun and not ended.
            substream: Random key of the copy, in [0, 2^64); None derives one from the parent's.
                With the parent's own the copy writes what the parent writes.

        Returns:
            Index of the copy.

        Raises:
            TypeError: ``substream`` is no integer.
            IndexError: No such sequence.
            ValueError: It has ended, or not begun, or ``substream`` is out of range.
            RuntimeError: All rows are in use.
        """
        if substream is not None:
            check_random_key("substream", substream)
        return self._sequences.fork(self._begun(sequence), substream).index

    @_alone
    def rewind(self, sequence: int, count: int, *, exact: bool = True) -> None:
        """Drops the last generated tokens of a sequence; it goes on from there.

        At a step's start (also with a count of 0) the step is routed again. Draws depend on the
        position alone, so the same models write the same again. Text that events have given out is
        void; unread events of dropped tokens do not come any more.

        Args:
            sequence: One that has begun and not ended.
            count: Tokens to drop, in [0, len(generated(sequence))]; forced closing ids count, and
                come and go as one together with the token before them.
            exact: Whether forward passes that the cut goes through are computed again as a whole,
                so that a sequence alone continues to the same bits. Else only the last token is. At
                the very start the whole pass is the prompt.

        Raises:
            TypeError: ``count`` is no integer.
            IndexError: No such sequence.
            ValueError: It has ended, or not begun; another count, or one that ends within the
                closing ids.
        """
        record = self._begun(sequence)
        check_integer("count", count, 0)
        if count > len(record.generated):
            raise ValueError(
                f"cannot drop {count} tokens of sequence {sequence}: it has generated"
                f" {len(record.generated)}"
            )
        shown = record.shown
        self._sequences.rewind(record, count, exact=exact)
        self._loop.drop_events(sequence, shown - record.shown)

    @_alone
    def save(self, sequence: int) -> bytes:
        """All of a sequence, keys and values included, for :meth:`load`; it goes on here.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended, or not begun.
        """
        return self._sequences.save(self._begun(sequence)).to_bytes()

    @_alone
    def load(self, saved: bytes | SavedSequence) -> int:
        """Goes on with a saved sequence, with its own options: also in another process.

        Args:
            saved: What :meth:`save` gave, by the same engine and the same models: their shapes are
                compared, their weights are not.

        Returns:
            Index of the sequence in this run.

        Raises:
            TypeError: No bytes.
            ValueError: Foreign or damaged bytes, another pair or engine, or more memory needed than
                this run has.
            RuntimeError: All rows are in use.
        """
        state = saved if isinstance(saved, SavedSequence) else SavedSequence.from_bytes(saved)
        return self._sequences.load(state).index

    @_alone
    def cancel(self, sequence: int) -> Result:
        """Ends a sequence now; its last events follow as always.

        Returns:
            What there is of it; the trace's ``end_reason`` is ``"cancelled"``.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended.
        """
        return self._loop.cancel(self._sequences.record(sequence))

    def _begun(self, sequence: int) -> SequenceRecord:
        """A sequence that has begun and not ended, in memory."""
        self._loop.settle()
        return self._sequences.begun(sequence)
