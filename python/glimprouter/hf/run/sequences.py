"""The sequences of a run: router, engine and records change together, between two passes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glimprouter.hf.engine.base import Engine
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.run.usage import RunUsage
from glimprouter.hf.sequence.events import Event, Result
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.record_state import state_of
from glimprouter.hf.sequence.saved import SavedSequence
from glimprouter.router import Phase, StepRouter


@dataclass(frozen=True)
class RunPair:
    """What a run knows of the two models.

    Attributes:
        engine: ``"paged"`` or ``"gather"``.
        description: What comes of :func:`pair_description`.
        models: The models themselves: a pass waits for those of other threads.
        contexts: The most tokens that each model can see, by name.
        translation: Translation of their vocabularies; None where both have the same.
        record: Makes the record of a saved sequence, given its index.
        policy: Name of the policy that decides about steps; None where thresholds do.
    """

    engine: str
    description: dict[str, dict[str, str]]
    models: tuple[Any, Any]
    contexts: dict[str, int]
    translation: Translation | None
    record: Callable[[SavedSequence, int], SequenceRecord]
    policy: str | None = None


class RunSequences:
    """All sequences of a run, by what they wait for.

    A sequence waits for a row of the router, is active, or was preempted: it keeps its row then,
    and waits for memory. Everything here is consistent between two forward passes.

    Attributes:
        router: The router of all rows.
        engine: The engine of all keys and values.
        pair: The two models.
        changes: How often sequences came, changed or were taken back in from outside of the loop:
            what was planned before is void then.
    """

    def __init__(
        self, router: StepRouter, engine: Engine, pair: RunPair, max_sequences: int
    ) -> None:
        """Takes a fresh router and a fresh engine, for so many sequences in flight."""
        self.router = router
        self.engine = engine
        self.pair = pair
        self.changes = 0
        self._max_sequences = max_sequences
        self._records: dict[int, SequenceRecord] = {}  # by index, which is never given twice
        self._given = 0  # indices
        # No row yet, with the options that open it.
        self._waiting: deque[tuple[SequenceRecord, dict[str, Any]]] = deque()
        self._active: dict[int, SequenceRecord] = {}  # by row
        self._preempted: deque[SequenceRecord] = deque()  # in order of admission
        self._held: set[int] = set()  # indices of those that no model goes on with
        self._one_step: set[int] = set()  # that are held when they have ended a step

    def add_prompt(self, record: SequenceRecord, options: dict[str, Any]) -> None:
        """A sequence that waits for a row; the options open it.

        Raises:
            ValueError: It needs more memory than there is.
        """
        self.engine.check_room(record)
        self._add(record)
        self._waiting.append((record, options))

    def _add(self, record: SequenceRecord) -> None:
        self._records[record.index] = record
        self._given = record.index + 1

    @property
    def next_index(self) -> int:
        """Index of the next sequence."""
        return self._given

    def release(self, record: SequenceRecord) -> None:
        """Forgets a sequence.

        Raises:
            ValueError: It has not ended.
        """
        if not record.done:
            raise ValueError(f"sequence {record.index} has not ended; cancel it first")
        del self._records[record.index]
        self._held.discard(record.index)
        self._one_step.discard(record.index)

    def hold(self, record: SequenceRecord) -> None:
        """No model goes on with a sequence until :meth:`go_on`."""
        self._held.add(record.index)
        self.changes += 1

    def go_on(self, record: SequenceRecord, *, one_step: bool) -> None:
        """Lets a sequence go on, up to the end of a step or to its own."""
        self._held.discard(record.index)
        (self._one_step.add if one_step else self._one_step.discard)(record.index)
        self.changes += 1

    def note_step_end(self, record: SequenceRecord) -> None:
        """A sequence has ended a step, or its thinking."""
        if record.index in self._one_step:
            self._one_step.discard(record.index)
            self.hold(record)

    def goes_on_unseen(self, record: SequenceRecord) -> bool:
        """Whether nobody waits for single tokens of a sequence, or for the end of its step.

        The first one may begin an answer, which ends a step, too.
        """
        awaited = record.stream_tokens or record.index in self._one_step
        return bool(record.generated) and not awaited

    def record(self, sequence: int) -> SequenceRecord:
        """The record of a sequence.

        Raises:
            IndexError: No such sequence.
        """
        record = self._records.get(sequence)
        if record is not None:
            return record
        if 0 <= sequence < self._given:
            raise IndexError(f"sequence {sequence} was released")
        raise IndexError(f"this run has {self._given} sequences, there is no {sequence}")

    def unfinished(self) -> list[int]:
        """Sequences that have not ended, ascending."""
        return [index for index, record in self._records.items() if not record.done]

    def begun(self, sequence: int) -> SequenceRecord:
        """The record of a sequence that has begun and not ended; it is in memory then.

        Raises:
            IndexError: No such sequence.
            ValueError: It has ended, or not begun.
        """
        record = self.record(sequence)
        if record.done:
            raise ValueError(f"sequence {sequence} has ended")
        if record.row < 0:
            raise ValueError(
                f"sequence {sequence} has not begun: it waits for one of {self._max_sequences} rows"
            )
        if self.is_active(record) and self.engine.drop_drafts(record):
            self.changes += 1
        self.bring_back(record)
        return record

    def bring_back(self, record: SequenceRecord) -> None:
        """Takes a sequence back into memory that was preempted; others are as they are."""
        if record not in self._preempted:
            return
        while not self.engine.open(record):  # drafts make room, then the youngest others
            if not self.drop_drafts():
                self.preempt_youngest()
        self._preempted.remove(record)
        self._activate(record)

    def _activate(self, record: SequenceRecord) -> None:
        self._active[record.row] = record
        self._note_room(record)
        self.changes += 1

    def _note_room(self, record: SequenceRecord) -> None:
        if self.engine.drafts:
            record.drafts.room = self.router.state(record.row)["room"]

    def _check_free_row(self) -> None:
        if len(self._active) + len(self._preempted) >= self._max_sequences:
            raise RuntimeError(
                f"all {self._max_sequences} rows of this run are in use; wait until a sequence"
                " ends, cancel one, or make the RoutedModel with a larger max_sequences"
            )

    def fork(self, record: SequenceRecord, substream: int | None) -> SequenceRecord:
        """Copies a begun sequence.

        Raises:
            RuntimeError: All rows are in use.
        """
        self._check_free_row()
        twin = record.copy(self._given, record.trace.substream)
        self.engine.fork(record, twin)  # first: a fork of the router counts for the next one's key
        try:
            twin.row = self.router.fork(record.row, substream)
        except BaseException:
            self.engine.close(twin)
            raise
        twin.trace.substream = self.router.state(twin.row)["substream"]
        self._add(twin)
        self._activate(twin)
        return twin

    def rewind(self, record: SequenceRecord, count: int, *, exact: bool) -> None:
        """Drops the last generated tokens of a begun sequence.

        Raises:
            ValueError: A count that ends within the closing ids.
        """
        self.router.rewind(record.row, count)
        record.repeats = exact
        phase = Phase(self.router.state(record.row)["phase"])
        record.rewind(len(record.generated) - count, phase)
        self.engine.rewind(record)
        self._note_room(record)
        self.changes += 1

    def end_thinking(self, record: SequenceRecord) -> list[Event]:
        """Ends the thinking of a begun sequence behind what it has written; what happened.

        Raises:
            ValueError: It has written nothing, or its thinking has ended.
        """
        self.router.end_thinking(record.row)
        state = self.router.state(record.row)
        self._note_room(record)
        self.changes += 1
        return record.end_thinking(state["think_tokens"], Phase(state["phase"]))

    def save(self, record: SequenceRecord) -> SavedSequence:
        """All of a begun sequence; it goes on here."""
        return SavedSequence(
            self.pair.engine,
            self.pair.description,
            state_of(record),
            self.router.save(record.row),
            self.engine.save(record),
        )

    def load(self, saved: SavedSequence) -> SequenceRecord:
        """Goes on with a saved sequence, once there is memory.

        Raises:
            ValueError: It is of another pair or engine, or needs more memory than there is.
            RuntimeError: All rows are in use.
        """
        saved.check_fits(self.pair.engine, self.pair.description)
        self._check_free_row()
        record = self.pair.record(saved, self._given)
        if record.trace.policy is not None and self.pair.policy is None:
            raise ValueError(
                f"the saved sequence is decided by a policy ({record.trace.policy}), and this run"
                " has none; set the RoutedModel's policy first"
            )
        if record.trace.policy is not None:
            record.trace.policy = self.pair.policy
        record.row = self.router.load(saved.router)
        try:
            self.engine.restore(record, saved.memory)
        except BaseException:
            self.router.close(record.row)
            raise
        self._add(record)
        self._preempted.append(record)
        self.changes += 1
        return record

    def withdraw(self, record: SequenceRecord) -> bool:
        """Takes a sequence out of those that wait for a row; whether it was one of them."""
        waiting = next((entry for entry in self._waiting if entry[0] is record), None)
        if waiting is None:
            return False
        self._waiting.remove(waiting)
        self.changes += 1
        return True

    def close(self, record: SequenceRecord) -> Result:
        """Frees what an active sequence holds, which is finished; what came of it."""
        self.engine.drop_drafts(record)
        token_ids = self.engine.token_ids("large", record)
        result = record.result(token_ids, self.engine.counts(record))
        self.router.close(record.row)
        self.engine.close(record)
        del self._active[record.row]
        return result

    def admit(self) -> None:
        """Opens sequences while there is room: those that were preempted first."""
        while (returning := self._first_to_return()) is not None:
            if not self.engine.open(returning):
                if not self._all_held() or not self._active:
                    break
                self.preempt_youngest()  # nobody in memory goes on, so room is theirs to give
                continue
            self._preempted.remove(returning)
            self._active[returning.row] = returning
            self._note_room(returning)
        rows = self._max_sequences - len(self._preempted)
        while self._waiting and returning is None and len(self._active) < rows:
            record, options = self._waiting[0]
            if not self.engine.open(record):
                return
            self._waiting.popleft()
            record.row = self.router.open(**options)
            self._active[record.row] = record
            self._note_room(record)

    def _first_to_return(self) -> SequenceRecord | None:
        """Of those that were preempted, the first that is not held."""
        return next((r for r in self._preempted if r.index not in self._held), None)

    def _all_held(self) -> bool:
        """Whether no model goes on with any sequence in memory."""
        return all(record.index in self._held for record in self._active.values())

    def preempt_youngest(self, spared: SequenceRecord | None = None) -> None:
        """Makes room for the others; the oldest sequence always goes on, so every one ends.

        Args:
            spared: One that is to stay.
        """
        others = (active for active in self._active.values() if active is not spared)
        # Those that are held first: whoever let them go again would wait for nothing else.
        record = max(others, key=lambda active: (active.index in self._held, active.index))
        self.engine.drop_drafts(record)
        self.engine.preempt(record)
        del self._active[record.row]
        self._preempted.appendleft(record)

    def drop_drafts(self) -> bool:
        """Takes back the drafts of all sequences in memory; whether there were any.

        None is drafted for again before the large model has gone on with it.
        """
        drafted = False
        for record in self._active.values():
            drafted |= self.engine.drop_drafts(record)
            record.drafts.ended = True
        self.changes += drafted
        return drafted

    def takes_draft(self, record: SequenceRecord, most: int) -> bool:
        """Whether the small model may draft one token more for a sequence, of at most so many."""
        if not (record.drafts.takes_more(most) and self.engine.takes_drafts(record)):
            return False
        if self.pair.translation is None:
            return True  # no draft reaches beyond the budgets, which fit the contexts
        contexts = self.pair.contexts
        return all(self.engine.length(name, record) < contexts[name] for name in contexts)

    def unlike_router(self) -> list[SequenceRecord]:
        """After a pass that was interrupted: takes drafts back, which may be half made.

        Returns:
            Sequences whose tokens the router has, and their record has not.
        """
        self.changes += 1
        active = list(self._active.values())
        positions = [self.router.state(record.row)["position"] for record in active]
        pairs = list(zip(active, positions, strict=True))
        for record, position in pairs:
            if position == len(record.generated):
                self.engine.drop_drafts(record)
        return [record for record, position in pairs if position != len(record.generated)]

    def usage(self) -> RunUsage:
        """What the run holds."""
        return RunUsage(
            self._max_sequences,
            len(self._active),
            len(self._preempted),
            len(self._waiting),
            self.engine.memory(),
        )

    @property
    def num_active(self) -> int:
        """Sequences in memory."""
        return len(self._active)

    def is_active(self, record: SequenceRecord) -> bool:
        """Whether a sequence is in memory."""
        return self._active.get(record.row) is record

    def pending(self, model: str) -> list[SequenceRecord]:
        """Sequences in memory that wait for a model."""
        rows = self.router.pending(model).tolist()
        records = [self._active[row] for row in rows if row in self._active]
        return [record for record in records if record.index not in self._held]
