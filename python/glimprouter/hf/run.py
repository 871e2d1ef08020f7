"""A run over some prompts: the loop that drives two models by one router."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from glimprouter.glimpse import Status
from glimprouter.hf.engine import Engine
from glimprouter.hf.events import Event
from glimprouter.hf.scheduler import WaitingTurns
from glimprouter.hf.sequence import SequenceRecord, Signals
from glimprouter.hf.text import MODELS
from glimprouter.hf.translation import Translation
from glimprouter.kv import OutOfPages
from glimprouter.router import OutputField, StepRouter
from glimprouter.trace import Trace


class Run:
    """Iterate over it for the events. Prompts wait for a free slot; finished ones leave theirs.

    :meth:`trace` gives the record of any prompt at any time, also after an interrupt.
    """

    def __init__(
        self,
        router: StepRouter,
        engine: Engine,
        records: Sequence[SequenceRecord],
        options: Sequence[dict[str, object]],
        *,
        max_batch_size: int,
        raise_on_invalid: bool,
        translation: Translation | None = None,
        contexts: dict[str, int] | None = None,
    ) -> None:
        """Takes a fresh router and a fresh engine; ``options[i]`` opens ``records[i]``.

        Where the vocabularies differ, a model may need more tokens than were written: ``contexts``
        are the most that each model can see.
        """
        self._router = router
        self._engine = engine
        self._records = list(records)
        self._waiting = deque(zip(records, options, strict=True))
        self._active: dict[int, SequenceRecord] = {}  # by row
        self._preempted: deque[SequenceRecord] = deque()  # in order of admission
        self._max_batch = max_batch_size
        self._raise_on_invalid = raise_on_invalid
        self._translation = translation
        self._contexts = contexts or {}
        self._outputs = router.outputs(max_batch_size, OutputField.NONE)
        self._turns = WaitingTurns()
        self._events = self._loop()

    def __iter__(self) -> Iterator[Event]:
        """The events that have not been taken yet."""
        return self._events

    def __next__(self) -> Event:
        """The next event."""
        return next(self._events)

    def trace(self, sequence: int) -> Trace:
        """The record of a prompt so far.

        Raises:
            IndexError: No such prompt.
        """
        return self._records[sequence].interrupted_trace()

    def _loop(self) -> Iterator[Event]:
        while self._waiting or self._active or self._preempted:
            self._admit()
            pending = {name: self._pending(name) for name in MODELS}
            name = self._turns.choose({name: len(records) for name, records in pending.items()})
            if name is None:
                continue
            records = pending[name]
            if self._translation is not None:
                yield from self._end_beyond_context(name, records)
                records = [record for record in records if not record.done]
            for group in list(self._engine.groups(name, records)):
                yield from self._forward(name, group)

    def _pending(self, name: str) -> list[SequenceRecord]:
        """Sequences in flight that wait for a model."""
        rows = self._router.pending(name).tolist()
        return [self._active[row] for row in rows if row in self._active]

    def _admit(self) -> None:
        """Opens rows while there is room: those that were preempted first."""
        while self._preempted and self._engine.open(self._preempted[0]):
            record = self._preempted.popleft()
            self._active[record.row] = record
        while self._waiting and not self._preempted and len(self._active) < self._max_batch:
            record, options = self._waiting[0]
            if not self._engine.open(record):
                return
            self._waiting.popleft()
            record.row = self._router.open(**options)  # type: ignore[arg-type]
            self._active[record.row] = record

    def _preempt_youngest(self) -> None:
        """Makes room for the others; the oldest sequence always goes on, so every one ends."""
        record = max(self._active.values(), key=lambda active: active.index)
        self._engine.preempt(record)
        del self._active[record.row]
        self._preempted.appendleft(record)

    def _forward(self, name: str, records: Sequence[SequenceRecord]) -> Iterator[Event]:
        """One token (or decision) for each of these rows."""
        started = time.perf_counter()
        logits: Any = None
        while logits is None:
            records = [record for record in records if record.row in self._active]
            if not records:
                return
            try:
                logits = self._engine.forward(name, records)
            except OutOfPages as error:
                if len(self._active) > 1:
                    self._preempt_youngest()
                elif self._translation is None:
                    raise
                else:  # the text has more tokens in the other vocabulary than were planned for
                    yield from self._fail(records[0], str(error))
                    return
        rows = [record.row for record in records]
        if logits.device.type != "cpu":
            logits = logits.cpu()
        self._router.step(name, logits.contiguous(), rows, self._outputs)
        seconds = (time.perf_counter() - started) / len(records)
        for record, status, signals in zip(
            records, self._outputs.status.tolist(), self._signals(len(records)), strict=False
        ):
            if status != Status.OK:
                yield from self._invalid(name, record, Status(status))
            elif self._inexpressible(name, signals.token):
                message = (
                    f"sequence {record.index}: the {name} model wrote token {signals.token}, which"
                    f" has neither text nor a counterpart in the other model's vocabulary, after"
                    f" {len(record.generated)} tokens"
                )
                yield from self._fail(record, message)
            else:
                yield from record.advance(name, signals, seconds)
                if record.done:
                    yield self._close(record)

    def _inexpressible(self, name: str, token: int) -> bool:
        if token < 0 or self._translation is None:
            return False
        return not self._translation.expressible(name, token)

    def _end_beyond_context(self, name: str, records: Sequence[SequenceRecord]) -> Iterator[Event]:
        """Ends sequences that have become too long for a model in its own tokens."""
        for record in records:
            length, context = self._engine.length(name, record), self._contexts[name]
            if length > context:
                message = (
                    f"sequence {record.index}: the {len(record.generated)} tokens generated, with"
                    f" the prompt, are {length} tokens of the {name} model, whose context is"
                    f" {context}; lower max_think_tokens or max_answer_tokens"
                )
                yield from self._fail(record, message)

    def _fail(self, record: SequenceRecord, message: str) -> Iterator[Event]:
        """Ends one sequence with an error; the others go on."""
        yield from record.finish("error", message)
        yield self._close(record)

    def _signals(self, count: int) -> list[Signals]:
        outputs = self._outputs
        columns = (
            outputs.token,
            outputs.route,
            outputs.phase,
            outputs.end_reason,
            outputs.forced,
            outputs.entropy,
        )
        return [
            Signals(*values) for values in zip(*(c[:count].tolist() for c in columns), strict=True)
        ]

    def _invalid(self, name: str, record: SequenceRecord, status: Status) -> Iterator[Event]:
        fault = status.name.lower().replace("_", " ")
        message = (
            f"sequence {record.index}: the {name} model gave logits with a fault ({fault}) after "
            f"{len(record.generated)} tokens"
        )
        events = record.finish("error", message)  # also in the trace of a run that raises
        if self._raise_on_invalid:
            raise RuntimeError(
                message + '; RoutedModel(on_invalid="end") ends such a sequence instead'
            )
        yield from events
        yield self._close(record)

    def _close(self, record: SequenceRecord) -> Event:
        """Frees what a finished sequence holds; its last event."""
        token_ids = self._engine.token_ids("large", record)
        result = record.result(token_ids, self._engine.counts(record))
        self._router.close(record.row)
        self._engine.close(record)
        del self._active[record.row]
        return Event(record.index, "done", result=result)
