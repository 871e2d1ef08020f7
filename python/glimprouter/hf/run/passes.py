"""Forward passes over the sequences of a run, and what the router makes of their logits."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from glimprouter.glimpse import Status
from glimprouter.hf.pair.asides import EncodedAside
from glimprouter.hf.pair.devices import torch_device
from glimprouter.hf.run.decisions import Decisions, is_undecided
from glimprouter.hf.run.said import Entry, Said, read_entries
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.hf.run.verdicts import Verdicts
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.kv import OutOfPages
from glimprouter.policies import Policy
from glimprouter.policies.base import reads_steps
from glimprouter.router import OutputField, Phase, Route, StepOutputs

# Passes ahead: what an interrupt or another thread waits for, and rows of outputs.
_MOST_SECONDS_AHEAD = 1e-3
_MOST_AHEAD = 64


class PlannedPass(NamedTuple):
    """A forward pass to come.

    Attributes:
        model: Whose.
        records: Sequences in it.
        drafting: Those of them that wait for the large model, by index: the small one drafts.
        alone: Whether nobody waits for anything else: the model may go on as long as they do.
    """

    model: str
    records: list[SequenceRecord]
    drafting: frozenset[int] = frozenset()
    alone: bool = False


class _Answer(NamedTuple):
    """What the outputs of the router are about, until they are read.

    Attributes:
        model: Whose pass.
        records: In order.
        counts: Drafts that were verified of each.
        started: When the pass began.
        outputs: Where they are.
        ahead: Whether passes may have followed at once, whose outputs lie elsewhere.
    """

    model: str
    records: list[SequenceRecord]
    counts: list[int]
    started: float
    outputs: StepOutputs
    ahead: bool = False


class PassReport(NamedTuple):
    """What a pass was, or each of some that were alike.

    Attributes:
        model: Whose.
        tokens: It computed.
        written: Tokens of text that came of it.
        seconds: It took.
    """

    model: str
    tokens: int
    written: float
    seconds: float


class ModelPasses:
    """Computes passes; what was said of them waits to be told to the records.

    Attributes:
        said: Not told yet, in order.
    """

    def __init__(
        self,
        sequences: RunSequences,
        max_sequences: int,
        most_drafts: int,
        policy: Policy | None = None,
        aside: EncodedAside | None = None,
        *,
        worth_drafts: Callable[[Sequence[SequenceRecord]], list[int]],
    ) -> None:
        """Nothing is computed yet.

        Args:
            sequences: Sequences of the run.
            max_sequences: In flight.
            most_drafts: That may wait of a sequence; 0 for none.
            policy: Who decides about steps; None where the router does.
            aside: What the large model reads for it; None for nothing.
            worth_drafts: Of sequences that come to wait for the large model, those by place whose
                first draft pays: a method that is asked after steps of the small model.
        """
        self._worth_drafts = weakref.WeakMethod(worth_drafts)  # of the loop, which has this
        self.said: deque[Said] = deque()
        self.most_drafts = most_drafts
        self._sequences = sequences
        router = sequences.router
        self._decisions = None if policy is None else Decisions(router, policy, max_sequences)
        self._verdicts: Verdicts | None = None
        fields = OutputField.NONE
        if policy is not None and reads_steps(policy):
            self._verdicts, fields = Verdicts(sequences, policy, aside), OutputField.LOGPROB
        self._reads = aside is not None
        self._aside_seconds = 0.0  # within the pass that is being computed
        self._outputs = router.outputs(max_sequences * (1 + most_drafts), fields)
        self._drafted = router.outputs(max_sequences, OutputField.NONE)
        self._ahead = router.outputs(_MOST_AHEAD, OutputField.NONE)
        self._goes_ahead = policy is None and router.device == "cpu"
        self._num_ahead = 0  # passes, behind the one that was planned
        self._answer: _Answer | None = None

    def run(self, planned: PlannedPass) -> PassReport | None:
        """Computes a pass; None where none of its sequences is in memory any more.

        Raises:
            OutOfPages: One sequence alone has no room, even without drafts.
        """
        started, self._aside_seconds, self._num_ahead = time.perf_counter(), 0.0, 0
        name, drafting = planned.model, planned.drafting
        records = [r for r in planned.records if self._sequences.is_active(r)]
        if not records:
            return None
        records, drafting, logits = self._forward(name, records, drafting)
        if not records:
            return None
        tokens = self._sequences.engine.pass_tokens
        logits = logits.to(torch_device(self._sequences.router.device)).contiguous()
        alone = planned.alone and self._goes_ahead and tokens == len(records)
        alone = alone and all(map(self._sequences.goes_on_unseen, records))
        if name == "large":
            written = self._verify(records, logits, started, alone=alone)
        else:
            written = self._step(records, drafting, logits, started, alone=alone)
        seconds = time.perf_counter() - started - self._aside_seconds
        passes = 1 + self._num_ahead
        return PassReport(name, tokens, written / passes, seconds / passes)

    def catch_up(self, name: str, record: SequenceRecord) -> None:
        """Has a model compute all that is written of a sequence in memory; nothing comes of it.

        Raises:
            OutOfPages: The sequence alone has no room.
        """
        for group in self._sequences.engine.groups(name, [record]):
            self._forward(name, group, frozenset(), spared=record)
        # Its last logits are wanted once more, and no more than that of what was read now.
        record.note_start(name, self._sequences.engine.length(name, record) - 1)

    def _forward(
        self,
        name: str,
        records: list[SequenceRecord],
        drafting: frozenset[int],
        spared: SequenceRecord | None = None,
    ) -> tuple[list[SequenceRecord], frozenset[int], Any]:
        """The logits of a pass, and who is left in it: drafts make room first, then sequences."""
        sequences = self._sequences
        while records:
            try:
                return records, drafting, self._compute(name, records)
            except OutOfPages:
                if sequences.drop_drafts() or drafting:
                    records = [record for record in records if record.index not in drafting]
                    drafting = frozenset()
                elif sequences.num_active > 1:
                    sequences.preempt_youngest(spared)
                    records = [record for record in records if sequences.is_active(record)]
                else:
                    raise
        return [], drafting, None

    def _compute(self, name: str, records: list[SequenceRecord]) -> Any:
        """The logits of a pass over sequences that there is room for.

        Raises:
            OutOfPages: There is none.
        """
        return self._sequences.engine.forward(name, records)

    def _step(
        self,
        records: Sequence[SequenceRecord],
        drafting: frozenset[int],
        logits: Any,
        started: float,
        *,
        alone: bool,
    ) -> int:
        """Steps of the small model, and drafts behind those that went to the large one."""
        if self._reads:
            logits = logits.clone()  # graphs of the other model may compute where they lie
        places = [at for at, record in enumerate(records) if record.index not in drafting]
        drafted = [at for at, record in enumerate(records) if record.index in drafting]
        if places:
            stepping = [records[at] for at in places]
            own = logits if len(places) == len(records) else logits[places]
            out = self._outputs if self._decisions is None else self._decisions.glimpsed
            self._sequences.router.step("small", own, [r.row for r in stepping], out)
            self._answer = _Answer("small", stepping, [0] * len(stepping), started, out)
            if alone:
                self._go_ahead(self._answer)
            self.hear()
            drafted += self._first_drafts(places)
        drafted = [at for at in drafted if self._still_drafts(records[at])]
        if drafted:
            self._draft([records[at] for at in drafted], logits[drafted])
        return self._written() if places else 0

    def _first_drafts(self, places: Sequence[int]) -> list[int]:
        """Of the places that stepped, those that wait for the large model now and get a draft."""
        handed = []
        for at, said in zip(places, self.said, strict=True):
            if not self._sequences.is_active(said.record):
                continue  # asides of others took its memory
            if said.entries[-1][1].route == Route.LARGE and not said.rewritten:
                said.record.drafts.clear()
                if self._sequences.takes_draft(said.record, self.most_drafts):
                    handed.append((at, said.record))
        worth_drafts = self._worth_drafts()
        if not handed or worth_drafts is None:
            return []
        return [handed[place][0] for place in worth_drafts([record for _, record in handed])]

    def _still_drafts(self, record: SequenceRecord) -> bool:
        """Whether asides of others have left it its memory and its drafts."""
        return self._sequences.is_active(record) and not record.drafts.ended

    def _draft(self, records: Sequence[SequenceRecord], logits: Any) -> None:
        """One draft more for each of these."""
        counts = [len(record.drafts) for record in records]
        before = [token for record in records for token in record.drafts.own]
        rows, out = [record.row for record in records], self._drafted
        self._sequences.router.draft("small", logits, rows, counts, before, out)
        columns = (out.status[: len(rows)], out.token[: len(rows)], out.phase[: len(rows)])
        for record, *values in zip(records, *(c.tolist() for c in columns), strict=True):
            status, token, phase = values
            writing = Phase.ANSWER if record.answering else Phase.LARGE_STEP
            # One that ends the step is of no use: the row of logits before it gives it, too.
            goes_on = status == Status.OK and phase == writing
            record.drafts.ended = not (goes_on and self._sequences.engine.draft(record, token))

    def _go_ahead(self, answer: _Answer) -> None:
        """Further passes over the same sequences in one call, as long as all of them just go on."""
        left = _MOST_SECONDS_AHEAD - (time.perf_counter() - answer.started)
        if left > 0:
            # Before the call: an interrupt takes its result away, and not what it has written.
            self._ahead.status[:] = Status.NOT_REACHED
            self._answer = answer._replace(ahead=True)
            engine, outputs = self._sequences.engine, (answer.outputs, self._ahead)
            router = self._sequences.router
            engine.write_ahead(answer.model, answer.records, router, outputs, left)

    def _verify(
        self, records: Sequence[SequenceRecord], logits: Any, started: float, *, alone: bool
    ) -> int:
        """What the large model writes, as long as drafts hold, and what it writes instead."""
        counts = [len(record.drafts) for record in records]
        drafts = [token for record in records for token in record.drafts.ids]
        rows, router = [record.row for record in records], self._sequences.router
        if drafts:
            router.verify("large", logits, rows, counts, drafts, self._outputs)
        else:  # which is faster on a device
            router.step("large", logits, rows, self._outputs)
        self._answer = _Answer("large", list(records), counts, started, self._outputs)
        if alone:
            self._go_ahead(self._answer)
        self.hear()
        return self._written()

    def _written(self) -> int:
        """Tokens of what waits to be told."""
        return sum(signals.token >= 0 for said in self.said for _, signals in said.entries)

    def hear(self) -> None:
        """Makes what the router has answered ready to be told, once, also after an interrupt.

        What a policy decides about it is among that, glimpses first.
        """
        if self._answer is not None:
            self.said, self._answer = deque(self._said(self._answer)), None
        if self._decisions is not None:
            self._decisions.make(self.said)
        if self._verdicts is not None:
            started = time.perf_counter()
            self._verdicts.make(self.said)
            self._aside_seconds += time.perf_counter() - started

    def drop_undecided(self, record: SequenceRecord) -> None:
        """Forgets what a policy has not decided, of a sequence that is to end."""
        for own in self.said:
            if own.record is not record:
                continue
            own.judged = len(own.entries)
            if is_undecided(own):
                own.entries.clear()

    def _read_ahead(self, answer: _Answer) -> list[Entry]:
        """What the router said of passes that followed at once, pass by pass."""
        rows = len(answer.records)
        reached = self._ahead.status[::rows] != Status.NOT_REACHED
        self._num_ahead = int(reached.sum())
        if self._num_ahead:
            for record in answer.records:
                self._sequences.engine.note_ahead(answer.model, record)
        return read_entries(self._ahead, rows * self._num_ahead)

    def _said(self, answer: _Answer) -> Iterator[Said]:
        num_records = len(answer.records)
        entries = read_entries(answer.outputs, num_records + sum(answer.counts))
        ahead = self._read_ahead(answer) if answer.ahead else []
        seconds = (time.perf_counter() - answer.started) / num_records
        at = 0
        for place, (record, count) in enumerate(zip(answer.records, answer.counts, strict=True)):
            own = entries[at : at + count + 1] + ahead[place::num_records]
            at += count + 1
            reached = [entry for entry in own if entry[0] != Status.NOT_REACHED]
            tokens = [signals.token for _, signals in reached]
            pairs = zip(tokens, record.drafts.ids, strict=False) if count else ()
            failed = (k for k, (token, draft) in enumerate(pairs) if token != draft)
            held = next(failed, min(len(tokens), count))
            record.drafts.room = reached[-1][1].room
            yield Said(answer.model, record, reached, held, seconds)
