"""The loop that drives two models: who runs next, and what comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from glimprouter.glimpse import Status
from glimprouter.hf.pair.asides import EncodedAside
from glimprouter.hf.pair.locks import exclusive
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.drafted_turns import DraftedTurns, WaitingRow
from glimprouter.hf.run.drafting import Drafting
from glimprouter.hf.run.passes import ModelPasses, PassReport, PlannedPass
from glimprouter.hf.run.said import Said
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.hf.run.turns import WaitingTurns
from glimprouter.hf.sequence.events import Event, Result, TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.signals import Signals
from glimprouter.kv import OutOfPages
from glimprouter.policies import Policy

_STEPS_TO_TRY = 16  # in each so many, a sequence is drafted for, whatever has held before


class Loop:
    """Forward passes over the sequences of a run, one model at a time, and their events.

    Attributes:
        sequences: Sequences of the run; they may change between two calls.
        unread: Events that nobody has taken.
    """

    def __init__(
        self,
        sequences: RunSequences,
        *,
        max_sequences: int,
        raise_on_invalid: bool,
        drafting: Drafting | None = None,
        policy: Policy | None = None,
        aside: EncodedAside | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            sequences: Sequences of the run.
            max_sequences: In flight.
            raise_on_invalid: Whether invalid logits raise, or only end their sequence.
            drafting: How the small model drafts for the large one; None where it does not.
            policy: Who decides about steps; None where the router does.
            aside: What the large model reads for it; None for nothing.
        """
        self.sequences = sequences
        self.unread: deque[Event] = deque()
        self._raise_on_invalid = raise_on_invalid
        self._passes: deque[PlannedPass] = deque()  # planned, of one model
        self._planned_at = 0  # changes of the sequences until then
        self._interrupted = False  # a pass was, in the middle
        self._turns = WaitingTurns()
        self._drafted_turns = None if drafting is None else DraftedTurns(drafting.costs())
        most = 0 if drafting is None else drafting.most
        self._computed = self._make_passes(sequences, max_sequences, most, policy, aside)

    def _make_passes(self, *arguments: Any) -> ModelPasses:
        """Whoever computes them; the arguments are those of the class."""
        return ModelPasses(*arguments, worth_drafts=self._worth_first_drafts)

    def compute(self) -> None:
        """Computes until there is an unread event, or nothing left to do.

        Raises:
            OutOfPages: A sequence alone needs more than there is.
            RuntimeError: Invalid logits, where those are to be raised.
        """
        self.settle()  # after an interrupt
        while not self.unread:
            with exclusive(*self.sequences.pair.models):
                if self._planned_at != self.sequences.changes:
                    self._passes.clear()
                if not self._passes:
                    self.sequences.admit()
                    self._plan()
                if not self._passes:
                    return
                self._forward(self._passes.popleft())

    def cancel(self, record: SequenceRecord) -> Result:
        """Ends a sequence that has not ended; its last events follow as always.

        Raises:
            ValueError: It has ended.
        """
        self._computed.drop_undecided(record)  # whose policy may be why it is to end
        self.settle()
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

    def rewind(self, record: SequenceRecord, count: int, *, exact: bool) -> None:
        """Drops the last generated tokens of a begun sequence, and their unread events.

        Raises:
            ValueError: A count that ends within the closing ids.
        """
        shown = record.shown
        with self._as_one():
            self.sequences.rewind(record, count, exact=exact)
            self.drop_events(record.index, shown - record.shown)

    def end_thinking(self, record: SequenceRecord) -> None:
        """Ends the thinking of a begun sequence behind what it has written.

        Raises:
            ValueError: It has written nothing, or its thinking has ended.
        """
        with self._as_one():
            self.unread.extend(self.sequences.end_thinking(record))
            self.sequences.note_step_end(record)
            if record.done:
                self._close(record)

    def catch_up(self, name: str, record: SequenceRecord) -> None:
        """Has a model compute all that is written of a begun sequence; nothing comes of it.

        Raises:
            OutOfPages: The sequence alone needs more than there is.
        """
        self.sequences.changes += 1  # what is planned may count on what is computed
        with exclusive(*self.sequences.pair.models), self._as_one():
            if self.sequences.pair.translation is not None:
                self._end_beyond_context(name, [record])
            if not record.done:
                self._computed.catch_up(name, record)

    @contextmanager
    def _as_one(self) -> Iterator[None]:
        """What is interrupted in the middle is found, and ended, before anything else is done."""
        try:
            yield
        except ValueError:
            raise  # a refusal: nothing has changed
        except BaseException:
            self._interrupted = True
            raise

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
        name, drafting = self._turn(pending)
        if name is None:
            return
        passes = list(self._cut(name, pending[name], drafting))
        if len(passes) == 1 and self._is_alone(name, pending) and not drafting:
            passes = [passes[0]._replace(alone=True)]
        self._passes.extend(passes)

    def _is_alone(self, name: str, pending: Mapping[str, Sequence[SequenceRecord]]) -> bool:
        """Whether nobody waits for the other model, nor could it do anything meanwhile."""
        waiting = any(records for other, records in pending.items() if other != name)
        drafts = name == "large" and self._drafted_turns is not None
        return not (waiting or drafts or self.sequences.pair.translation is not None)

    def _cut(
        self,
        name: str,
        records: Sequence[SequenceRecord],
        drafting: Sequence[SequenceRecord],
    ) -> Iterator[PlannedPass]:
        """The passes of a turn."""
        if self.sequences.pair.translation is not None:
            self._end_beyond_context(name, records)
            records = [record for record in records if not record.done]
        records = [*records, *drafting]
        indices = frozenset(record.index for record in drafting)
        for group in self.sequences.engine.groups(name, records):
            own = indices & {record.index for record in group}
            yield PlannedPass(name, group, own)

    def _turn(
        self, pending: Mapping[str, Sequence[SequenceRecord]]
    ) -> tuple[str | None, list[SequenceRecord]]:
        """Whose turn it is, and for whom the small model drafts then."""
        if self._drafted_turns is None:
            waiting = {name: len(records) for name, records in pending.items()}
            return self._turns.choose(waiting), []
        large = pending["large"]
        turn = self._drafted_turns.choose(len(pending["small"]), [self._row(r) for r in large])
        if turn is None:
            return None, []
        return turn.model, [large[place] for place in turn.drafting]

    def _waiting_for_large(self) -> list[SequenceRecord]:
        """Sequences that its next pass could have."""
        return self.sequences.pending("large")

    def _worth_first_drafts(self, handed: Sequence[SequenceRecord]) -> list[int]:
        """Sequences, by place, that come to wait for the large model with a draft behind them.

        What drafts are worth is learned from drafts alone, so now and then one is tried that
        does not seem to be worth it.
        """
        assert self._drafted_turns is not None
        # Those of this pass have not been told of their tokens: their text is not whole yet.
        told = {said.record.index for said in self._computed.said}
        others = [r for r in self._waiting_for_large() if r.index not in told]
        rows = [[self._row(record) for record in records] for records in (handed, others)]
        worth = set(self._drafted_turns.worth_handing_over(*rows))
        tries = {p for p, r in enumerate(handed) if len(r.step_starts) % _STEPS_TO_TRY == 0}
        return sorted(worth | tries)

    def _row(self, record: SequenceRecord) -> WaitingRow:
        drafts = record.drafts
        takes_more = self.sequences.takes_draft(record, self._computed.most_drafts)
        *drafted, following = drafts.chances(at_start=record.at_step_start)
        return WaitingRow(len(drafts), takes_more, 1 + sum(drafted), following)

    def _forward(self, planned: PlannedPass) -> None:
        """One pass, and what comes of it."""
        try:
            report = self._computed.run(planned)
        except OutOfPages as error:
            if self.sequences.engine.planned and self.sequences.pair.translation is None:
                raise
            # The text has more tokens in the other vocabulary than were planned for.
            alone = next(r for r in planned.records if self.sequences.is_active(r))
            self._fail(alone, str(error))
            return
        except BaseException:
            self._interrupted = True
            raise
        self._note(report)
        self.settle()

    def _note(self, report: PassReport | None) -> None:
        """What a pass was; None for one that nobody was left in."""
        if report is not None and self._drafted_turns is not None:
            self._drafted_turns.note(*report)

    def settle(self) -> None:
        """Tells the records what the router said of the last pass; raises once all of them know.

        Raises:
            RuntimeError: Invalid logits, where those are to be raised.
        """
        faults: list[str] = []
        self._computed.hear()
        interrupted = self._interrupted
        while self._computed.said:
            self._interrupted = True  # what an interrupt loses from here on is found then
            self.sequences.bring_back(self._computed.said[0].record)  # asides took its memory
            said = self._computed.said.popleft()
            record = said.record
            try:
                faults += self._tell(said)
            except BaseException:
                if said.entries and not record.done:
                    self._fail(record, f"sequence {record.index}: interrupted while text was read")
                elif self.sequences.is_active(record) and record.done:
                    self._close(record)
                raise
        self._interrupted = interrupted
        if self._interrupted:
            for record in self.sequences.unlike_router():
                self._fail(record, f"sequence {record.index}: interrupted in a pass or a call")
            self._interrupted = False
        if faults:
            advice = 'RoutedModel(on_invalid="end") ends such sequences without an exception'
            raise RuntimeError("; ".join([*faults, advice]))

    def _tell(self, said: Said) -> list[str]:
        """Tells one record; what is to be raised of it."""
        if said.fault is not None and not said.record.done:
            said.entries.clear()
            self.sequences.engine.rewind(said.record)  # what was read, and is not told
            self._fail(said.record, said.fault)
            return [said.fault] if said.invalid and self._raise_on_invalid else []
        held = said.held
        if said.model == "large":
            self.sequences.engine.settle_drafts(said.record, held)
        faults = []
        seconds = said.seconds / max(1, len(said.entries))
        for place in range(len(said.entries)):
            if said.record.done:
                break
            status, signals = said.entries[0]
            fault = self._take(said, status, signals, seconds, drafted=place < held)
            del said.entries[0]  # what is left was not told, or only in part
            if fault is not None:
                faults.append(fault)
        return faults

    def _take(
        self, said: Said, status: Status, signals: Signals, seconds: float, *, drafted: bool
    ) -> str | None:
        """Tells a record of one token or decision; what is to be raised, if anything."""
        name, record = said.model, said.record
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
            events = record.advance(name, signals, seconds, drafted=drafted)
            if any(event.kind in ("step", "answer_start") for event in events):
                self.sequences.note_step_end(record)
            self.unread.extend(events)
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
            length = self.sequences.engine.length(name, record) - len(record.drafts)
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
