"""A run over some prompts: the loop that drives two models by one router."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from glimprouter.glimpse import Status
from glimprouter.hf.events import Event
from glimprouter.hf.runner import ModelRunner
from glimprouter.hf.sequence import SequenceRecord, Signals
from glimprouter.router import StepRouter
from glimprouter.trace import Trace


class Run:
    """Iterate over it for the events. Prompts wait for a free slot; finished ones leave theirs.

    :meth:`trace` gives the record of any prompt at any time, also after an interrupt.
    """

    def __init__(
        self,
        router: StepRouter,
        runners: dict[str, ModelRunner],
        records: Sequence[SequenceRecord],
        options: Sequence[dict[str, object]],
        *,
        max_batch_size: int,
        raise_on_invalid: bool,
    ) -> None:
        """Takes a fresh router and fresh caches; ``options[i]`` opens ``records[i]``."""
        self._router = router
        self._runners = runners
        self._records = list(records)
        self._waiting = deque(zip(records, options, strict=True))
        self._active: dict[int, SequenceRecord] = {}  # by row
        self._max_batch = max_batch_size
        self._raise_on_invalid = raise_on_invalid
        self._outputs = router.outputs(max_batch_size)
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
        while self._waiting or self._active:
            self._admit()
            for name, runner in self._runners.items():
                yield from self._advance(name, runner)

    def _admit(self) -> None:
        """Opens rows while there is room. A row of the router is the slot in both caches."""
        while self._waiting and len(self._active) < self._max_batch:
            record, options = self._waiting.popleft()
            record.row = self._router.open(**options)  # type: ignore[arg-type]
            self._active[record.row] = record

    def _advance(self, name: str, runner: ModelRunner) -> Iterator[Event]:
        """One token (or decision) for every row that waits for this model."""
        decoding: list[SequenceRecord] = []
        behind: list[SequenceRecord] = []
        for row in self._router.pending(name).tolist():
            record = self._active[row]
            unseen = len(record.unseen(name, runner.cache.lengths[row]))
            (decoding if unseen == 1 else behind).append(record)
        # Rows that catch up are padded to the longest: sorted, so that little is wasted.
        behind.sort(key=lambda record: len(record.unseen(name, runner.cache.lengths[record.row])))
        for group, size in ((decoding, self._max_batch), (behind, 16)):
            size = size if runner.batches else 1
            for start in range(0, len(group), size):
                yield from self._forward(name, runner, group[start : start + size])

    def _forward(
        self, name: str, runner: ModelRunner, records: Sequence[SequenceRecord]
    ) -> Iterator[Event]:
        started = time.perf_counter()
        rows = [record.row for record in records]
        unseen = [record.unseen(name, runner.cache.lengths[record.row]) for record in records]
        logits = runner.forward(rows, unseen)
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
        if self._raise_on_invalid:
            raise RuntimeError(
                message + '; RoutedModel(on_invalid="end") ends such a sequence instead'
            )
        yield from record.finish("error", message)

    def _close(self, record: SequenceRecord) -> None:
        self._router.close(record.row)
        for runner in self._runners.values():
            runner.cache.free(record.row)
        del self._active[record.row]
