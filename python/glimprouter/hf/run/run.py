"""A run over some prompts: its events, and what may be done to its sequences on the way."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from glimprouter.config import ModelName, check_integer, check_random_key
from glimprouter.hf.pair.prompts import Prompt
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.begin import Beginnings
from glimprouter.hf.run.loop import Loop
from glimprouter.hf.run.lost_device import LostDevice
from glimprouter.hf.run.usage import RunUsage
from glimprouter.hf.sequence.events import Event, Result, TokenCounts
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
            try:
                return method(run, *arguments, **named)
            except Exception as error:
                run._lost.note(error)
                raise

    return call


class Run:
    """Iterate over it for the events. Prompts wait for a free slot; finished ones leave theirs.

    Between two events, or two calls of :meth:`step`, a sequence may be forked, rewound, saved,
    cancelled, and another loaded; the others notice no more than the rounding of other batches.
    :meth:`trace` gives the record of any sequence at any time, also after an interrupt.

    A run may be handed from thread to thread, and calls of several threads wait for one another.

    When a device is lost, the call that finds out raises :class:`glimprouter.DeviceLost`, and so
    does every later one that needs the device. Unread events, traces, generated ids and
    :meth:`cancel` do not: they are as of the last pass whose tokens were told.
    """

    def __init__(
        self,
        loop: Loop,
        common: Beginnings,
        records: Sequence[SequenceRecord],
        options: Sequence[dict[str, object]],
    ) -> None:
        """Takes a fresh loop; ``options[i]`` opens ``records[i]``."""
        self._lock = threading.RLock()
        self._loop = loop
        self._common = common
        self._sequences = loop.sequences
        self._lost = LostDevice(loop)
        for record, own in zip(records, options, strict=True):
            self._sequences.add_prompt(record, own)

    def __iter__(self) -> Iterator[Event]:
        """The events that have not been taken yet."""
        return self

    @_alone
    def __next__(self) -> Event:
        """The next event."""
        self._compute()
        if not self._loop.unread:
            raise StopIteration
        return self._loop.unread.popleft()

    @_alone
    def step(self) -> list[Event]:
        """Goes on to the next event.

        Returns:
            All events that have not been taken; empty when every sequence has ended.
        """
        self._compute()
        events = list(self._loop.unread)
        self._loop.unread.clear()
        return events

    @_alone
    def trace(self, sequence: int) -> Trace:
        """The record of a sequence so far.

        Raises:
            IndexError: No such sequence.
        """
        return self._sequences.record(sequence).interrupted_trace()

    @_alone
    def generated(self, sequence: int) -> list[int]:
        """Ids generated so far, each of its writer's vocabulary; also those of unread events.

        Raises:
            IndexError: No such sequence.
        """
        return list(self._sequences.record(sequence).generated)

    @property
    def sequences(self) -> list[int]:
        """Sequences that have not ended, ascending."""
        with self._lock:
            return self._sequences.unfinished()

    @_alone
    def usage(self) -> RunUsage:
        """What the run holds now."""
        return self._sequences.usage()

    @_alone
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
        """A prompt more: it joins the others as soon as there is a free slot.

        Its text is what it would be alone, but for the rounding of other batches.

        Args:
            prompt: As in :meth:`RoutedModel.generate`.
            seed: In [0, 2^64).
            substream: Random key, in [0, 2^64); None for the index. A prompt alone in its run has
                the index 0.
            chat_template_kwargs: Handed to both chat templates.
            **overrides: Fields of :class:`RouterConfig` for this sequence; all others are those of
                the run. Nothing else can differ between its sequences.

        Returns:
            Index of the sequence.

        Raises:
            TypeError: No prompt, or an option that is none, or of another type.
            ValueError: As in :meth:`RoutedModel.generate`; or it needs more memory than this run
                has. Nothing has changed.
        """
        self._lost.check()
        for name, key in (("seed", seed), ("substream", substream)):
            if key is not None or name == "seed":
                check_random_key(name, key)
        records, options = self._common.begin(
            [prompt],
            [int(seed)],
            chat_template_kwargs,
            self._sequences.next_index,
            substream,
            overrides,
        )
        self._sequences.add_prompt(records[0], options[0])
        return records[0].index

    @_alone
    def release(self, sequence: int) -> None:
        """Forgets a sequence that has ended, whose trace and ids this run would keep otherwise.

        A run that prompts are added to for weeks would grow without it. Its unread events still
        come; its index is not given again.

        Raises:
            IndexError: No such sequence, or it was released.
            ValueError: It has not ended.
        """
        self._sequences.release(self._sequences.record(sequence))

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
        self._loop.rewind(record, count, exact=exact)

    @_alone
    def end_thinking(self, sequence: int) -> None:
        """Ends the thinking of a sequence behind what it has written; the answer comes next.

        The closing ids follow, as where a budget is spent: ``max_think_tokens`` of the sequence is
        what it has written from now on, also after a rewind. A policy is not asked about the step
        that is cut: it stays as it is. With :meth:`fork` a chain is answered
        from any place of it, and goes on.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended, or not begun, or written nothing, or its thinking has ended.
        """
        self._loop.end_thinking(self._begun(sequence))

    @_alone
    def catch_up(self, sequence: int, model: ModelName = "large") -> None:
        """Has a model read all that is written of a sequence, before it is asked to go on.

        Else it reads what the other wrote when it is asked. Forks share what was read before them,
        so this comes before several; each computes the last token again when it is asked.

        Where vocabularies differ, a model reads the other's text in its own tokens, a piece at a
        time. What is written so far is a piece of its own then: with what follows it, it may have
        had other tokens, and the model may go on otherwise than without this call.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended, or not begun, or no such model.
        """
        if model not in MODELS:
            raise ValueError(f"model must be one of {list(MODELS)}, got {model!r}")
        self._loop.catch_up(model, self._begun(sequence))

    @_alone
    def hold(self, sequence: int) -> None:
        """No model goes on with a sequence until :meth:`go_on`; it keeps its memory.

        A run whose sequences are all held has no further events: iterating over it ends.

        Raises:
            IndexError: No such sequence.
        """
        self._sequences.hold(self._sequences.record(sequence))

    @_alone
    def go_on(self, sequence: int, *, one_step: bool = False) -> None:
        """Goes on with a sequence.

        Args:
            sequence: Held or not.
            one_step: Whether it is held again once it has ended a step, or its thinking.

        Raises:
            IndexError: No such sequence.
        """
        self._sequences.go_on(self._sequences.record(sequence), one_step=one_step)

    @_alone
    def has_begun(self, sequence: int) -> bool:
        """Whether a sequence has a slot, or had one: it can be forked before it ends.

        Raises:
            IndexError: No such sequence.
        """
        return self._sequences.record(sequence).row >= 0

    @_alone
    def counts(self, sequence: int) -> dict[str, TokenCounts]:
        """What both models have done for a sequence so far, as in :attr:`Result.counts`.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended, or not begun.
        """
        return self._sequences.engine.counts(self._begun(sequence))

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
        self._lost.check()
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
        record = self._sequences.record(sequence)
        return self._lost.cancel(record) if self._lost else self._loop.cancel(record)

    def _compute(self) -> None:
        """Up to the next event, if there is no unread one."""
        if self._lost and self._loop.unread:
            return
        self._lost.check()
        self._loop.compute()

    def _begun(self, sequence: int) -> SequenceRecord:
        """A sequence that has begun and not ended, in memory."""
        self._lost.check()
        self._loop.settle()
        return self._sequences.begun(sequence)
