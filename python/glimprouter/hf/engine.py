"""What a run needs of the two models: their forward passes over many sequences, and the memory.

Two engines offer it. :class:`GatherEngine` is plain Hugging Face attention over a cache that hands
out copies: it serves any model with keys and values, and is the reference for the other,
:class:`glimprouter.hf.paged_engine.PagedEngine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from glimprouter.hf.runner import ModelRunner
from glimprouter.hf.sequence import SequenceRecord

MODELS = ("small", "large")
_MAX_CATCH_UP = 16  # rows that catch up together: they are padded to the longest


class Engine(Protocol):
    """Forward passes and the keys and values of sequences; a record's ``row`` names its memory."""

    def open(self, record: SequenceRecord) -> bool:
        """Takes a sequence in, or a preempted one back; False when there is no room now."""

    def close(self, record: SequenceRecord) -> None:
        """Frees the memory of a sequence."""

    def preempt(self, record: SequenceRecord) -> None:
        """Moves a sequence out of the way until it is opened again; nothing is lost."""

    def groups(
        self, model: str, records: Sequence[SequenceRecord]
    ) -> Iterable[list[SequenceRecord]]:
        """Cuts the sequences that wait for a model into forward passes."""

    def forward(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """Brings the model to the frontier of each sequence; logits there, ``[B, V]``.

        Raises:
            OutOfPages: Nothing has changed; preempt a sequence.
        """


class GatherEngine:
    """Plain Hugging Face attention: rows that catch up are padded, rows that decode are not."""

    def __init__(self, small: Any, large: Any, max_batch_size: int) -> None:
        """Empty caches for ``max_batch_size`` sequences of both models.

        Raises:
            ValueError: A layer keeps state other than keys and values.
        """
        self._max_batch = max_batch_size
        self._runners = {
            name: ModelRunner(name, model, max_batch_size)
            for name, model in zip(MODELS, (small, large), strict=True)
        }

    def open(self, record: SequenceRecord) -> bool:
        """There is a slot for every row of the router."""
        return True

    def close(self, record: SequenceRecord) -> None:
        """Empties the slot in both caches."""
        for runner in self._runners.values():
            runner.cache.free(record.row)

    def preempt(self, record: SequenceRecord) -> None:
        """Never needed: memory grows."""
        raise RuntimeError("the gathering engine does not run out of pages")

    def _unseen(self, model: str, record: SequenceRecord) -> list[int]:
        return record.unseen(model, self._runners[model].cache.lengths[record.row])

    def groups(
        self, model: str, records: Sequence[SequenceRecord]
    ) -> Iterable[list[SequenceRecord]]:
        """Decoding rows together; rows that catch up sorted, so that little padding is wasted."""
        counts = {record.row: len(self._unseen(model, record)) for record in records}
        decoding = [record for record in records if counts[record.row] == 1]
        behind = sorted(
            (record for record in records if counts[record.row] > 1),
            key=lambda record: counts[record.row],
        )
        for group, size in ((decoding, self._max_batch), (behind, _MAX_CATCH_UP)):
            step = size if self._runners[model].batches else 1
            for start in range(0, len(group), step):
                yield group[start : start + step]

    def forward(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """One padded forward pass."""
        unseen = [self._unseen(model, record) for record in records]
        return self._runners[model].forward([record.row for record in records], unseen)
