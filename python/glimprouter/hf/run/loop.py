"""The loop that drives two models: who runs next, and what comes of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from glimprouter.glimpse import Status
from glimprouter.hf.pair.locks import exclusive
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.hf.run.turns import WaitingTurns
from glimprouter.hf.sequence.events import Event, Result, TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord, Signals
from glimprouter.kv import OutOfPages
from glimprouter.router import OutputField


class Loop:
    """Forward passes over the sequences of a run, one model at a time, and their events.

    Attributes:
        sequences: Sequences of the run; they may change between two calls.
        unread: Events that nobody has taken.
    """

    def __init__(
        self, sequences: RunSequences, *, max_sequences: int, raise_on_invalid: bool
    ) -> None:
        """Nothing is computed yet.

        Args:
            sequences: Sequences of the run.
            max_sequences: In flight.
            raise_on_invalid: Whether invalid logits raise, or only end their sequence.
        """
        self.sequences = sequences
        self.unread: deque[Event] = deque()
        self._raise_on_invalid = raise_on_invalid
        self._outputs = sequences.router.outputs(max_sequences, OutputField.NONE)
        self._passes: deque[tuple[str, list[SequenceRecord]]] = deque()  # planned, of one model
        self._planned_at = 0  # changes of the sequences until then
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
        if self._planned_at != self.sequences.changes:
            self._passes.clear()
        while not self.unread:
            with exclusive(*self.sequences.pair.models):
                if not self._passes:
                    self.sequences.admit()
                    self._plan()
                if not self._passes:
                    return
                name, records = self._passes.popleft()
                self._forward(name, records)

    def cancel(self, record: SequenceRecord) -> Result:
        """Ends a sequence that has not ended; its last events follow as always.

        Raises:
            ValueError: It has ended.
        """
        if self.sequences.withdraw(record):
            self.unread.extend(record.finish("cancelled"))
            result = record.result([], {name: TokenCounts(0, 0, 0) for name in MODELS})
        else:
            self.sequences.begun(record.index)
            self.unread.extend(record.finish("cancelled"))
            result = self.sequences.close(record)
            self._passes.clear()
        self.unread.append(Event(record.index, "done", result=result))
        return result

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

    def _plan(self) -> None:
        """The forward passes of the model whose turn it is."""
        self._planned_at = self.sequences.changes
        pending = {name: self.sequences.pending(name) for name in MODELS}
        name = self._turns.choose({name: len(records) for name, records in pending.items()})
        if name is None:
            return
        records = pending[name]
        if self.sequences.pair.translation is not None:
            self._end_beyond_context(name, records)
            records = [record for record in records if not record.done]
        self._passes.extend((name, group) for group in self.sequences.engine.groups(name, records))

    def _forward(self, name: str, records: Sequence[SequenceRecord]) -> None:
        """One token (or decision) for each of these rows."""
        started = time.perf_counter()
        logits: Any = None
        while logits is None:
            records = [record for record in records if self.sequences.is_active(record)]
            if not records:
                return
            try:
                logits = self.sequences.engine.forward(name, records)
            except OutOfPages as error:
                if self.sequences.num_active > 1:
                    self.sequences.preempt_youngest()
                elif self.sequences.engine.planned and self.sequences.pair.translation is None:
                    raise
                else:  # the text has more tokens in the other vocabulary than were planned for
                    self._fail(records[0], str(error))
                    return
        rows = [record.row for record in records]
        router = self.sequences.router
        if router.device == "cpu":  # models may be where no step can run: choose_device warned
            logits = logits.cpu()
        router.step(name, logits.contiguous(), rows, self._outputs)
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
                position = -1
                if not record.done:
                    position = self.sequences.router.state(record.row)["position"]
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
                self._close(record)
        return None

    def _inexpressible(self, name: str, token: int) -> bool:
        translation = self.sequences.pair.translation
        return token >= 0 and translation is not None and not translation.expressible(name, token)

    def _end_beyond_context(self, name: str, records: Sequence[SequenceRecord]) -> None:
        """Ends sequences that have become too long for a model in its own tokens."""
        context = self.sequences.pair.contexts[name]
        for record in records:
            length = self.sequences.engine.length(name, record)
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
        self._close(record)

    def _close(self, record: SequenceRecord) -> None:
        """Frees what a finished sequence holds; its last event."""
        self.unread.append(Event(record.index, "done", result=self.sequences.close(record)))

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
