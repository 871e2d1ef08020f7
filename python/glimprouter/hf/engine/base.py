"""What a run needs of the two models: their forward passes over many sequences, and the memory.

Two engines offer it. :class:`glimprouter.hf.engine.gather.GatherEngine` leaves attention to the
models: over a cache that hands out copies, or over caches of the models' own, which hold whatever
state a model has. It is the reference for the other,
:class:`glimprouter.hf.engine.paged.PagedEngine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.events import TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord


class SequenceTokens(Protocol):
    """The tokens of open sequences as both models have them, and how many each has computed.

    :class:`glimprouter.KvCache` is one, and says what each method does. A model is an index of
    ``MODELS``.
    """

    def open(self, prompts: Sequence[Sequence[int]], /) -> int:
        """A sequence that has its prompts, for both models; its number."""

    def close(self, sequence: int, /) -> None:
        """Frees a sequence's memory and its number."""

    def fork(self, sequence: int, /) -> int:
        """A copy that goes its own way."""

    def append(self, model: int, sequence: int, ids: Any, /) -> None:
        """Tokens that a model wrote."""

    def caught_up(self, model: int, sequence: int, /) -> bool:
        """Whether all that was written is in the model's vocabulary."""

    def pending_spans(self, model: int, sequence: int, /) -> list[bytes]:
        """Texts that are not in the model's vocabulary yet."""

    def resolve(self, model: int, sequence: int, spans: Sequence[Sequence[int]], /) -> Any:
        """The tokens of these texts."""

    def truncate(self, sequence: int, generated: int, /) -> None:
        """Drops the generated tokens behind so many."""

    def forget(self, model: int, sequence: int, count: int, /) -> None:
        """Drops what the model has computed of the last tokens."""

    def frontier(self, sequence: int, /) -> int:
        """Generated tokens, each in its writer's vocabulary."""

    def length(self, model: int, sequence: int, /) -> int:
        """Tokens in the model's vocabulary, prompt included."""

    def generated(self, model: int, sequence: int, /) -> list[int]:
        """Generated tokens in the model's vocabulary."""

    def num_computed_tokens(self, model: int, sequence: int, /) -> int:
        """Tokens whose keys and values there are."""

    def retokenized(self, model: int, sequence: int, /) -> int:
        """Tokens that a tokenizer had to write, for none of the model's own was the same."""

    def excess(self, model: int, sequence: int, /) -> int:
        """Tokens that were computed, and then replaced by others."""


class Engine(ABC):
    """Forward passes of both models, and the tokens, keys and values of their sequences.

    What both engines do alike is here: the tokens of each sequence in each model's vocabulary, and
    how far each model has computed.

    Attributes:
        planned: Whether a sequence that could outgrow the memory alone is refused beforehand.
    """

    planned = False

    def __init__(self, tokens: SequenceTokens, translation: Translation | None) -> None:
        """No sequences.

        Args:
            tokens: Tokens of open sequences.
            translation: Translation of the models' vocabularies; None where both have the same.
        """
        self._tokens = tokens
        self._translation = translation
        self._sequences: dict[int, int] = {}  # numbers that ``tokens`` gave, by the record's index

    @abstractmethod
    def open(self, record: SequenceRecord) -> bool:
        """Takes a sequence in, or a preempted one back; False when there is no room now."""

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
    def _compute(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """One forward pass over all that the model has not computed; logits ``[B, V]``."""

    def _numbers(self, records: Sequence[SequenceRecord]) -> list[int]:
        """Numbers that ``tokens`` gave."""
        return [self._sequences[record.index] for record in records]

    def forward(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """Brings the model to the frontier of sequences of one group; logits there, ``[B, V]``.

        Raises:
            OutOfPages: Nothing has changed; preempt a sequence.
        """
        index = MODELS.index(model)
        self._recompute(model, records)
        sequences = self._numbers(records)
        starts = [self._tokens.num_computed_tokens(index, sequence) for sequence in sequences]
        logits = self._compute(model, records)
        for record, start in zip(records, starts, strict=True):
            record.note_pass(model, start)
        return logits

    def close(self, record: SequenceRecord) -> None:
        """Frees the memory of a sequence."""
        self._tokens.close(self._sequences.pop(record.index))

    def fork(self, record: SequenceRecord, twin: SequenceRecord) -> None:
        """Opens a copy of an open sequence."""
        self._sequences[twin.index] = self._tokens.fork(self._sequences[record.index])

    def rewind(self, record: SequenceRecord) -> None:
        """Drops what lies behind the record's tokens, which have become fewer."""
        sequence, kept = self._sequences[record.index], len(record.generated)
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
        return {
            name: TokenCounts(
                tokens.length(index, sequence) - len(record.prompt_of(name)),
                tokens.retokenized(index, sequence),
                tokens.excess(index, sequence),
                self._recomputed(index, sequence),
            )
            for index, name in enumerate(MODELS)
        }

    def _recomputed(self, index: int, sequence: int) -> int:
        """Tokens that a model computed again, for want of a state to go on from."""
        return 0

    def _catch_up(self, model: str, record: SequenceRecord) -> int:
        """The sequence's number, once all that was written is in the model's vocabulary."""
        tokens, sequence = self._tokens, self._sequences[record.index]
        for writer, ids in record.written_since(tokens.frontier(sequence)):
            tokens.append(writer, sequence, ids)
        index = MODELS.index(model)
        if self._translation is not None and not tokens.caught_up(index, sequence):
            spans = tokens.pending_spans(index, sequence)
            own = [self._translation.tokenize(index, span) for span in spans]
            tokens.resolve(index, sequence, own)
        return sequence

    def _unseen(self, model: str, record: SequenceRecord) -> int:
        """Tokens that the model has to compute: at least one, after a rewind too."""
        index, sequence = MODELS.index(model), self._catch_up(model, record)
        computed = self._tokens.num_computed_tokens(index, sequence)
        unseen = self._tokens.length(index, sequence) - computed
        if unseen == 0:  # it was rewound to here
            unseen = computed - record.kept_of(model, computed, cut=False)
            self._tokens.forget(index, sequence, unseen)
        return unseen
