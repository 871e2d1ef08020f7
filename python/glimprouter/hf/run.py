"""A run over some prompts: the loop that drives two models by one router."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from glimprouter.glimpse import Status
from glimprouter.hf.engine import MODELS, Engine
from glimprouter.hf.events import Event
from glimprouter.hf.sequence import SequenceRecord, Signals
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
    ) -> None:
        """Takes a fresh router and a fresh engine; ``options[i]`` opens ``records[i]``."""
        self._router = router
        self._engine = engine
        self._records = list(records)
        self._waiting = deque(zip(records, options, strict=True))
        self._active: dict[int, SequenceRecord] = {}  # by row
        self._preempted: deque[SequenceRecord] = deque()  # in order of admission
        self._max_batch = max_batch_size
        self._raise_on_invalid = raise_on_invalid
        self._outputs = router.outputs(max_batch_size, OutputField.NONE)
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
            for name in MODELS:
                pending = self._router.pending(name).tolist()
                records = [self._active[row] for row in pending if row in self._active]
                for group in list(self._engine.groups(name, records)):
                    yield from self._forward(name, group)

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
        while True:
            records = [record for record in records if record.row in self._active]
            if not records:
                return
            try:
                logits = self._engine.forward(name, records)
                break
            except OutOfPages:
                if len(self._active) == 1:
                    raise
                self._preempt_youngest()
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
            else:
                yield from record.advance(name, signals, seconds)
            if record.done:
                self._close(record)

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

    def _close(self, record: SequenceRecord) -> None:
        self._router.close(record.row)
        self._engine.close(record)
        del self._active[record.row]
