"""The engine over the models' own attention: the reference for the one over pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from glimprouter.hf.engine.base import Engine
from glimprouter.hf.engine.gather_runner import ModelRunner
from glimprouter.hf.engine.gather_tokens import GatherTokens
from glimprouter.hf.engine.native_runner import NativeRunner
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.record import SequenceRecord

_MAX_CATCH_UP = 16  # rows that catch up together: they are padded to the longest


class GatherEngine(Engine):
    """The models' own attention: rows that catch up are padded, rows that decode are not.

    A model whose state only a cache of its own can hold computes one sequence after another.
    """

    def __init__(
        self,
        runners: Sequence[ModelRunner | NativeRunner],
        max_sequences: int,
        translation: Translation | None = None,
    ) -> None:
        """Empty caches for ``max_sequences`` sequences of both models.

        Args:
            runners: Of the small and the large model, with as many slots.
            max_sequences: Sequences in flight.
            translation: Translation of their vocabularies; None where both have the same.
        """
        self._runners = dict(zip(MODELS, runners, strict=True))
        self._slots = GatherTokens(runners, max_sequences, translation.map if translation else None)
        super().__init__(self._slots, translation)
        self._max_sequences = max_sequences

    def open(self, record: SequenceRecord) -> bool:
        """There is a slot for every row of the router."""
        if record.index not in self._sequences:  # else it was restored
            prompts = [record.prompt_of(name) for name in MODELS]
            self._sequences[record.index] = self._slots.open(prompts)
        return True

    def preempt(self, record: SequenceRecord) -> None:
        """Never needed: memory grows."""
        raise RuntimeError("the gathering engine does not run out of pages")

    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """As :meth:`GatherTokens.save`."""
        return self._slots.save(self._sequences[record.index])

    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Fills a slot at once: there is room."""
        prompts = [record.prompt_of(name) for name in MODELS]
        self._sequences[record.index] = self._slots.load(prompts, memory)

    def groups(
        self, model: str, records: Sequence[SequenceRecord]
    ) -> Iterable[list[SequenceRecord]]:
        """Decoding rows together; rows that catch up sorted, so that little padding is wasted."""
        counts = {record.index: self._unseen(model, record) for record in records}
        decoding = [record for record in records if counts[record.index] == 1]
        behind = sorted(
            (record for record in records if counts[record.index] > 1),
            key=lambda record: counts[record.index],
        )
        for group, size in ((decoding, self._max_sequences), (behind, _MAX_CATCH_UP)):
            step = size if self._runners[model].batches else 1
            for start in range(0, len(group), step):
                yield group[start : start + step]

    def _compute(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """One padded forward pass."""
        index, sequences = MODELS.index(model), self._numbers(records)
        unseen = [self._slots.unseen(index, sequence) for sequence in sequences]
        return self._runners[model].forward(sequences, unseen)

    def _recomputed(self, index: int, sequence: int) -> int:
        """As the caches say."""
        return self._slots.recomputed(index, sequence)
