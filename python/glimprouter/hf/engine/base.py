"""What a run needs of the two models: their forward passes over many sequences, and the memory.

Two engines offer it. :class:`glimprouter.hf.engine.gather.GatherEngine` leaves attention to the
models: over a cache that hands out copies, or over caches of the models' own, which hold whatever
state a model has. It is the reference for the other,
:class:`glimprouter.hf.engine.paged.PagedEngine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch

from glimprouter.hf.engine.sequence_tokens import SequenceTokens
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.events import PageUsage, TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.router import StepOutputs, StepRouter


class Engine(ABC):
    """Forward passes of both models, and the tokens, keys and values of their sequences.

    What both engines do alike is here: the tokens of each sequence in each model's vocabulary, and
    how far each model has computed.

    Attributes:
        planned: Whether a sequence that could outgrow the memory alone is refused beforehand.
        drafts: Whether the small model can draft for the large one, as the choice of the engine
            says.
        pass_tokens: Tokens that the last pass computed.
    """

    planned = False
    drafts = False

    def __init__(self, tokens: SequenceTokens, translation: Translation | None) -> None:
        """No sequences.

        Args:
            tokens: Tokens of open sequences.
            translation: Translation of the models' vocabularies; None where both have the same.
        """
        self._tokens = tokens
        self._translation = translation
        self.pass_tokens = 0
        self._sequences: dict[int, int] = {}  # numbers that ``tokens`` gave, by the record's index
        self._aside_rows: dict[int, int] = {}  # of logits, of sequences between begin and end
        self._asked: dict[int, int] = {}  # tokens up to the end of a step, which records learn next

    @abstractmethod
    def open(self, record: SequenceRecord) -> bool:
        """Takes a sequence in, or a preempted one back; False when there is no room now."""

    def check_room(self, record: SequenceRecord) -> None:
        """Checks that there would be memory for a sequence alone.

        Raises:
            ValueError: There would not.
        """
        return

    def memory(self) -> PageUsage | None:
        """How much of the arena is in use; None where there is none."""
        return None

    @abstractmethod
    def preempt(self, record: SequenceRecord) -> None:
        """Moves a sequence out of the way until it is opened again; nothing is lost."""

    @abstractmethod
    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """All that the engine has of an open sequence, by names of its own."""

    @abstractmethod
    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Takes over what :meth:`save` gave; the sequence is as if preempted, to be opened.

        Raises:
            ValueError: It is not of this pair, or needs more memory than there is.
        """

    @abstractmethod
    def groups(
        self, model: str, records: Sequence[SequenceRecord]
    ) -> Iterable[list[SequenceRecord]]:
        """Cuts the sequences that wait for a model into forward passes.

        What was written since is turned into tokens of that model here; where nothing was, after a
        rewind, what its last logits need is forgotten.
        """

    def _recompute(self, model: str, records: Sequence[SequenceRecord]) -> None:
        """Computes again what a model has forgotten, as far as that takes passes of its own."""
        return

    @abstractmethod
    def _compute(
        self, model: str, records: Sequence[SequenceRecord], wanted: Sequence[int]
    ) -> torch.Tensor:
        """One forward pass over all that the model has not computed.

        Returns:
            Logits of the last ``wanted`` tokens of each, ``[sum of wanted, V]``.
        """

    def _numbers(self, records: Sequence[SequenceRecord]) -> list[int]:
        """Numbers that ``tokens`` gave."""
        return [self._sequences[record.index] for record in records]

    def forward(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """Brings the model to the frontier of sequences of one group, and behind their drafts.

        Returns:
            Logits ``[rows, V]``: the small model's of the last token of each sequence, the large
            model's of the last one that was written and of each draft behind it.

        Raises:
            OutOfPages: Nothing has changed; preempt a sequence.
        """
        index = MODELS.index(model)
        self._recompute(model, records)
        sequences = self._numbers(records)
        starts = [self._tokens.num_computed_tokens(index, sequence) for sequence in sequences]
        logits = self._compute(model, records, [self._wanted(model, r) for r in records])
        self._note_pass(model, records, starts)
        return logits

    def write_ahead(
        self,
        model: str,
        records: Sequence[SequenceRecord],
        router: StepRouter,
        outputs: tuple[StepOutputs, StepOutputs],
        seconds: float,
    ) -> None:
        """Further passes of a model behind a step, where they need nothing between them.

        Where there were some, :meth:`note_ahead` must follow for each of the records, also after an
        interrupt.

        Args:
            model: That goes on.
            records: Sequences of the step, each behind a pass over one token.
            router: Of the step.
            outputs: Of the step, and of those to come: ``NOT_REACHED`` behind the last one. Their
                tokens are the records' next ones.
            seconds: After which no further pass begins.
        """
        return

    def note_ahead(self, model: str, record: SequenceRecord) -> None:
        """Passes over a token each, since the last one that the record knows of, have succeeded."""
        for start in range(record.passes[model][-1] + 1, self.computed(model, record)):
            record.note_pass(model, start)

    def _note_pass(
        self, model: str, records: Sequence[SequenceRecord], starts: Sequence[int]
    ) -> None:
        """A pass is over that began with so many computed tokens of each sequence."""
        index, self.pass_tokens = MODELS.index(model), 0
        for record, start in zip(records, starts, strict=True):
            record.note_pass(model, start)
            sequence = self._sequences[record.index]
            self.pass_tokens += self._tokens.num_computed_tokens(index, sequence) - start

    def _wanted(self, model: str, record: SequenceRecord) -> int:
        """Rows of logits that a pass gives."""
        if model != "large":
            return 1
        return self._aside_rows.get(record.index, 1 + len(record.drafts))

    def begin_aside(
        self,
        record: SequenceRecord,
        written: Sequence[int],
        question: Sequence[int],
        first: int | None = None,
    ) -> int:
        """Puts a question to the large model behind a sequence; :meth:`end_aside` must follow.

        In between :meth:`groups` and :meth:`forward` are those of the aside.

        Args:
            record: A sequence that waits for the small model, which has no drafts then.
            written: Tokens of the small model behind those of the record.
            question: Tokens of the large model behind them.
            first: The generated token from which on the logits of each token are wanted, besides
                the last ones, where vocabularies are the same; None for the last ones alone.

        Returns:
            Rows of logits that the pass will give.
        """
        self.end_aside(record)  # what an interrupt has left
        sequence = self._append_written(record)
        # The end of the step stays from now on: text that is cut may become other tokens.
        self._asked[record.index] = len(record.generated) + len(written)
        if (known := self._tokens.frontier(sequence) - len(record.generated)) < len(written):
            self._tokens.append(MODELS.index("small"), sequence, list(written[known:]))
        if question:
            self._tokens.append(MODELS.index("large"), sequence, list(question))
        rows = 1
        if first is not None:
            behind = len(record.generated) + len(written) - first
            rows += behind + len(question)
        self._aside_rows[record.index] = rows
        return rows

    def end_aside(self, record: SequenceRecord) -> int:
        """Takes back the question of :meth:`begin_aside`; the step stays, also in memory.

        Returns:
            Tokens that the large model had computed of the question.
        """
        self._aside_rows.pop(record.index, None)
        sequence, kept = self._sequences[record.index], self._told_of(record)
        before = self.computed("large", record)
        if self._tokens.frontier(sequence) > kept:
            self._tokens.truncate(sequence, kept)
        return before - self.computed("large", record)

    def _told_of(self, record: SequenceRecord) -> int:
        """Generated tokens that the record has, or is told of next."""
        return max(len(record.generated), self._asked.get(record.index, 0))

    def computed(self, model: str, record: SequenceRecord) -> int:
        """Tokens of an open sequence that a model has computed."""
        sequence = self._sequences[record.index]
        return self._tokens.num_computed_tokens(MODELS.index(model), sequence)

    def takes_drafts(self, record: SequenceRecord) -> bool:
        """Whether the small model can draft for a sequence now.

        Where vocabularies differ, all of the text must be in its own without being tokenized anew:
        text that the large model goes on with may have other tokens as a whole.
        """
        sequence = self._append_written(record)
        small = MODELS.index("small")
        return self.drafts and self._tokens.caught_up(small, sequence)

    def draft(self, record: SequenceRecord, token: int) -> bool:
        """Adds a draft of the small model; False where the large one has no token for it.

        Args:
            record: A sequence whose tokens the small model has all computed.
            token: In the small model's vocabulary.
        """
        image: int | None = token
        if self._translation is not None:
            image = self._translation.draft_image(token)
            self._catch_up("large", record)  # as its pass would without drafts
        if image is None:
            return False
        self._tokens.append(MODELS.index("large"), self._sequences[record.index], [image])
        record.drafts.add(token, image)
        return True

    def settle_drafts(self, record: SequenceRecord, held: int) -> None:
        """Keeps the first so many drafts of a sequence, whose record takes them next."""
        if len(record.drafts):
            kept = len(record.generated) + held
            self._tokens.truncate(self._sequences[record.index], kept)
        record.drafts.settle(held, at_start=record.at_step_start)

    def drop_drafts(self, record: SequenceRecord) -> bool:
        """Takes back the drafts of a sequence, as if there had been none.

        Returns:
            Whether there were any.
        """
        sequence, kept = self._sequences[record.index], self._told_of(record)
        drafted = self._tokens.frontier(sequence) > kept  # also one that an interrupt cut off
        if drafted:
            self._tokens.truncate(sequence, kept)
        record.drafts.clear()
        return drafted

    def close(self, record: SequenceRecord) -> None:
        """Frees the memory of a sequence."""
        self._tokens.close(self._sequences.pop(record.index))
        if record.done:
            self._asked.pop(record.index, None)

    def fork(self, record: SequenceRecord, twin: SequenceRecord) -> None:
        """Opens a copy of an open sequence."""
        self._sequences[twin.index] = self._tokens.fork(self._sequences[record.index])

    def rewind(self, record: SequenceRecord) -> None:
        """Drops what lies behind the record's tokens, which have become fewer."""
        sequence, kept = self._sequences[record.index], len(record.generated)
        self._asked.pop(record.index, None)
        if kept >= self._tokens.frontier(sequence):
            return
        models = range(len(MODELS))
        before = [self._tokens.num_computed_tokens(index, sequence) for index in models]
        self._tokens.truncate(sequence, kept)
        for index, name in enumerate(MODELS):
            computed = self._tokens.num_computed_tokens(index, sequence)
            if computed < before[index]:
                forgotten = computed - record.kept_of(name, computed, cut=True)
                self._tokens.forget(index, sequence, forgotten)

    def length(self, model: str, record: SequenceRecord) -> int:
        """Tokens of a sequence up to the frontier in a model's vocabulary, prompt included."""
        return self._tokens.length(MODELS.index(model), self._catch_up(model, record))

    def token_ids(self, model: str, record: SequenceRecord) -> list[int]:
        """All that was generated, in a model's vocabulary."""
        return self._tokens.generated(MODELS.index(model), self._catch_up(model, record))

    def counts(self, record: SequenceRecord) -> dict[str, TokenCounts]:
        """By model."""
        tokens, sequence = self._tokens, self._sequences[record.index]
        drafts = record.drafts
        own = {
            "small": (drafts.drafted, drafts.compared, drafts.accepted, record.num_rewritten, 0, 0),
            "large": (0, 0, 0, 0, record.num_asides, record.num_aside_tokens),
        }
        return {
            name: TokenCounts(
                tokens.length(index, sequence) - len(record.prompt_of(name)),
                tokens.retokenized(index, sequence),
                tokens.excess(index, sequence),
                self._recomputed(index, sequence),
                record.num_passes[name],
                *own[name],
            )
            for index, name in enumerate(MODELS)
        }

    def _recomputed(self, index: int, sequence: int) -> int:
        """Tokens that a model computed again, for want of a state to go on from."""
        return 0

    def _catch_up(self, model: str, record: SequenceRecord) -> int:
        """The sequence's number, once all that was written is in the model's vocabulary."""
        tokens, sequence = self._tokens, self._append_written(record)
        index = MODELS.index(model)
        if self._translation is not None and not tokens.caught_up(index, sequence):
            spans = tokens.pending_spans(index, sequence)
            own = [self._translation.tokenize(index, span) for span in spans]
            tokens.resolve(index, sequence, own)
        return sequence

    def _append_written(self, record: SequenceRecord) -> int:
        """The sequence's number, once all that was written is among its tokens."""
        tokens, sequence = self._tokens, self._sequences[record.index]
        for writer, ids in record.written_since(tokens.frontier(sequence)):
            tokens.append(writer, sequence, ids)
        return sequence

    def _unseen(self, model: str, record: SequenceRecord) -> int:
        """Tokens that the model has to compute: those whose logits are wanted, at least."""
        index, sequence = MODELS.index(model), self._catch_up(model, record)
        computed = self._tokens.num_computed_tokens(index, sequence)
        unseen = self._tokens.length(index, sequence) - computed
        missing = self._wanted(model, record) - unseen
        if missing <= 0:
            return unseen
        # It was rewound to here, or a pass was interrupted.
        again = computed - record.kept_of(model, computed - missing + 1, cut=False)
        self._tokens.forget(index, sequence, again)
        return unseen + again
