"""Rounds of forward passes over the sequences of a run: who runs next, and what comes of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glimprouter.glimpse import Status
from glimprouter.hf.engine.base import Engine
from glimprouter.hf.pair.locks import exclusive
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.run.turns import WaitingTurns
from glimprouter.hf.sequence.events import Event
from glimprouter.hf.sequence.record import SequenceRecord, Signals
from glimprouter.hf.sequence.saved import SavedSequence
from glimprouter.kv import OutOfPages
from glimprouter.router import OutputField, StepRouter


@dataclass(frozen=True)
class RunPair:
    """What a run knows of the two models.

    Attributes:
        engine: ``"paged"`` or ``"gather"``.
        description: Of :func:`pair_description`.
        models: The models themselves: a pass waits for those of other threads.
        contexts: The most tokens that each model can see, by name.
        translation: Of their vocabularies; None where both have the same.
        record: Makes the record of a saved sequence, given its index.
    """

    engine: str
    description: dict[str, dict[str, str]]
    models: tuple[Any, Any]
    contexts: dict[str, int]
    translation: Translation | None
    record: Callable[[SavedSequence, int], SequenceRecord]


class Rounds:
    """The sequences of a run by what they wait for, and the loop that drives two models.

    Everything is consistent between two forward passes: that is when sequences may be added,
    changed or taken away; :meth:`replan` comes after it.

    Attributes:
        router: Of all rows.
        engine: Of all keys and values.
        pair: The two models.
        max_rows: Sequences in flight.
        waiting: Sequences that have no row yet, with the options that open it.
        unread: Events that nobody has taken.
    """

    def __init__(
        self,
        router: StepRouter,
        engine: Engine,
        pair: RunPair,
        *,
        max_rows: int,
        raise_on_invalid: bool,
    ) -> None:
        """Takes a fresh router and a fresh engine."""
        self.router = router
        self.engine = engine
        self.pair = pair
        self.max_rows = max_rows
        self.waiting: deque[tuple[SequenceRecord, dict[str, Any]]] = deque()
        self.unread: deque[Event] = deque()
        self._active: dict[int, SequenceRecord] = {}  # by row
        self._preempted: deque[SequenceRecord] = deque()  # in order of admission
        self._raise_on_invalid = raise_on_invalid
        self._outputs = router.outputs(max_rows, OutputField.NONE)
        self._passes: deque[tuple[str, list[SequenceRecord]]] = deque()  # planned, of one model
        self._turns = WaitingTurns()
        # Of the last pass: model, record, status, signals, seconds.
        self._signalled: deque[tuple[str, SequenceRecord, int, Signals, float]] = deque()

    def compute(self) -> None:
        """Computes until there is an unread event, or nothing left to do.

        Raises:
            OutOfPages: A sequence alone needs more than there is.
            RuntimeError: Invalid logits, where those are to be raised.
        """
        self.settle()  # after an interrupt
        while not self.unread:
            with exclusive(*self.pair.models):
                if not self._passes:
                    self._admit()
                    self._plan()
                if not self._passes:
                    return
                name, records = self._passes.popleft()
                self._forward(name, records)

    def replan(self) -> None:
        """Forgets planned passes: sequences have changed."""
        self._passes.clear()

    def drop_events(self, sequence: int, tokens: int) -> None:
        """Takes back the unread events of a sequence's last tokens, and what followed from them.

        A decision behind the last token that stays is taken back too: it is made again.
        """
        kept: deque[Event] = deque()
        dropping = True
        while self.unread:
            event = self.unread.pop()
            if event.sequence == sequence and dropping:
                if tokens > 0:
                    tokens -= event.token_id is not None
                    continue
                if event.kind == "route":
                    continue
                dropping = False
            kept.appendleft(event)
        self.unread = kept

    def add(self, record: SequenceRecord) -> None:
        """A sequence with a row, open in the engine."""
        self._active[record.row] = record
        self.replan()

    def add_preempted(self, record: SequenceRecord) -> None:
        """A sequence with a row, restored in the engine."""
        self._preempted.append(record)
        self.replan()

    def check_free_row(self) -> None:
        """Raises RuntimeError when every row is in use."""
        if len(self._active) + len(self._preempted) >= self.max_rows:
            raise RuntimeError(
                f"all {self.max_rows} rows of this run are in use; wait until a sequence ends,"
                " cancel one, or make the RoutedModel with a larger max_sequences"
            )

    def bring_back(self, record: SequenceRecord) -> None:
        """Opens a preempted sequence now; the youngest others make room."""
        if record not in self._preempted:
            return
        while not self.engine.open(record):
            self._preempt_youngest()
        self._preempted.remove(record)
        self.add(record)

    def close(self, record: SequenceRecord) -> Event:
        """Frees what a finished sequence holds; its last event."""
        token_ids = self.engine.token_ids("large", record)
        result = record.result(token_ids, self.engine.counts(record))
        self.router.close(record.row)
        self.engine.close(record)
        del self._active[record.row]
        return Event(record.index, "done", result=result)

    def _plan(self) -> None:
        """The forward passes of the model whose turn it is."""
        pending = {name: self._pending(name) for name in MODELS}
        name = self._turns.choose({name: len(records) for name, records in pending.items()})
        if name is None:
            return
        records = pending[name]
        if self.pair.translation is not None:
            self._end_beyond_context(name, records)
            records = [record for record in records if not record.done]
        self._passes.extend((name, group) for group in self.engine.groups(name, records))

    def _pending(self, name: str) -> list[SequenceRecord]:
        """Sequences in memory that wait for a model."""
        rows = self.router.pending(name).tolist()
        return [self._active[row] for row in rows if row in self._active]

    def _admit(self) -> None:
        """Opens rows while there is room: those that were preempted first."""
        while self._preempted and self.engine.open(self._preempted[0]):
            record = self._preempted.popleft()
            self._active[record.row] = record
        while self.waiting and not self._preempted and len(self._active) < self.max_rows:
            record, options = self.waiting[0]
            if not self.engine.open(record):
                return
            self.waiting.popleft()
            record.row = self.router.open(**options)
            self._active[record.row] = record

    def _preempt_youngest(self) -> None:
        """Makes room for the others; the oldest sequence always goes on, so every one ends."""
        record = max(self._active.values(), key=lambda active: active.index)
        self.engine.preempt(record)
        del self._active[record.row]
        self._preempted.appendleft(record)

    def _forward(self, name: str, records: Sequence[SequenceRecord]) -> None:
        """One token (or decision) for each of these rows."""
        started = time.perf_counter()
        logits: Any = None
        while logits is None:
            records = [record for record in records if record.row in self._active]
            if not records:
                return
            try:
                logits = self.engine.forward(name, records)
            except OutOfPages as error:
                if len(self._active) > 1:
                    self._preempt_youngest()
                elif self.pair.translation is None:
                    raise
                else:  # the text has more tokens in the other vocabulary than were planned for
                    self._fail(records[0], str(error))
                    return
        rows = [record.row for record in records]
        if self.router.device == "cpu":  # models may be where no step can run: choose_device warned
            logits = logits.cpu()
        self.router.step(name, logits.contiguous(), rows, self._outputs)
        seconds = (time.perf_counter() - started) / len(records)
        values = zip(
            records, self._outputs.status.tolist(), self._signals(len(records)), strict=False
        )
        self._signalled.extend((name, *value, seconds) for value in values)
        self.settle()

    def settle(self) -> None:
        """Tells the records what the router said of the last pass; raises once all of them know.

        Raises:
            RuntimeError: Invalid logits, where those are to be raised.
        """
        faults = []
        while self._signalled:
            name, record, status, signals, seconds = self._signalled.popleft()
            try:
                fault = self._take(name, record, Status(status), signals, seconds)
            except BaseException:
                position = self.router.state(record.row)["position"] if not record.done else -1
                if position >= 0 and position != len(record.generated):
                    self._fail(record, f"sequence {record.index}: interrupted while text was read")
                raise
            if fault is not None:
                faults.append(fault)
        if faults:
            advice = 'RoutedModel(on_invalid="end") ends such sequences without an exception'
            raise RuntimeError("; ".join([*faults, advice]))

    def _take(
        self, name: str, record: SequenceRecord, status: Status, signals: Signals, seconds: float
    ) -> str | None:
        """Tells one record what the router said; what is to be raised, if anything."""
        if status != Status.OK:
            reason = status.name.lower().replace("_", " ")
            message = (
                f"sequence {record.index}: the {name} model gave logits with a fault ({reason})"
                f" after {len(record.generated)} tokens"
            )
            self._fail(record, message)
            return message if self._raise_on_invalid else None
        if self._inexpressible(name, signals.token):
            self._fail(
                record,
                f"sequence {record.index}: the {name} model wrote token {signals.token}, which"
                f" has neither text nor a counterpart in the other model's vocabulary, after"
                f" {len(record.generated)} tokens",
            )
        else:
            self.unread.extend(record.advance(name, signals, seconds))
            if record.done:
                self.unread.append(self.close(record))
        return None

    def _inexpressible(self, name: str, token: int) -> bool:
        if token < 0 or self.pair.translation is None:
            return False
        return not self.pair.translation.expressible(name, token)

    def _end_beyond_context(self, name: str, records: Sequence[SequenceRecord]) -> None:
        """Ends sequences that have become too long for a model in its own tokens."""
        for record in records:
            length, context = self.engine.length(name, record), self.pair.contexts[name]
            if length > context:
                message = (
                    f"sequence {record.index}: the {len(record.generated)} tokens generated, with"
                    f" the prompt, are {length} tokens of the {name} model, whose context is"
                    f" {context}; lower max_think_tokens or max_answer_tokens"
                )
                self._fail(record, message)

    def _fail(self, record: SequenceRecord, message: str) -> None:
        """Ends one sequence with an error; the others go on."""
        self.unread.extend(record.finish("error", message))
        self.unread.append(self.close(record))

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
