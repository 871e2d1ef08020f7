"""What a run needs of the two models: their forward passes over many sequences, and the memory.

Two engines offer it. :class:`glimprouter.hf.engine.gather.GatherEngine` is plain Hugging Face
attention over a cache that hands out copies: it serves any model with keys and values, and is the
reference for the other, :class:`glimprouter.hf.engine.paged.PagedEngine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from glimprouter.hf.sequence.events import TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord


class Engine(Protocol):
    """Forward passes and the keys and values of sequences; a record's ``row`` names its memory."""

    def open(self, record: SequenceRecord) -> bool:
        """Takes a sequence in, or a preempted one back; False when there is no room now."""

    def close(self, record: SequenceRecord) -> None:
        """Frees the memory of a sequence."""

    def preempt(self, record: SequenceRecord) -> None:
        """Moves a sequence out of the way until it is opened again; nothing is lost."""

    def fork(self, record: SequenceRecord, twin: SequenceRecord) -> None:
        """Opens a copy of an open sequence."""

    def rewind(self, record: SequenceRecord) -> None:
        """Drops what lies behind the record's tokens, which have become fewer."""

    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """All that the engine has of an open sequence, by names of its own."""

    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Takes over what :meth:`save` gave; the sequence is as if preempted, to be opened.

        Raises:
            ValueError: It is not of this pair, or needs more memory than there is.
        """

    def groups(
        self, model: str, records: Sequence[SequenceRecord]
    ) -> Iterable[list[SequenceRecord]]:
        """Cuts the sequences that wait for a model into forward passes.

        What was written since is turned into tokens of that model here; where nothing was, after a
        rewind, what its last logits need is forgotten.
        """

    def length(self, model: str, record: SequenceRecord) -> int:
        """Tokens of a sequence up to the frontier in a model's vocabulary, prompt included."""

    def token_ids(self, model: str, record: SequenceRecord) -> list[int]:
        """All that was generated, in a model's vocabulary."""

    def counts(self, record: SequenceRecord) -> dict[str, TokenCounts]:
        """By model."""

    def forward(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """Brings the model to the frontier of sequences of one group; logits there, ``[B, V]``.

        Raises:
            OutOfPages: Nothing has changed; preempt a sequence.
        """
