"""The engine over the models' own attention: the reference for the one over pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from glimprouter.hf.engine.base import Engine
from glimprouter.hf.engine.gather_runner import ModelRunner
from glimprouter.hf.engine.gather_tokens import GatherTokens
from glimprouter.hf.engine.native_runner import NativeRunner
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.kv import OutOfPages

_MAX_CATCH_UP = 16  # rows that catch up together: they are padded to the longest
_ROOM = 1.25  # of what a preempted sequence had, so that it is not in the way again at once


class _Preempted(NamedTuple):
    """A sequence in host memory.

    Attributes:
        memory: What comes of ``GatherTokens.save``.
        recomputed: Tokens that each model had computed again.
    """

    memory: dict[str, torch.Tensor]
    recomputed: list[int]

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.memory.values())


class GatherEngine(Engine):
    """The models' own attention: rows that catch up are padded, rows that decode are not.

    A model whose state only a cache of its own can hold computes one sequence after another.
    """

    def __init__(
        self,
        runners: Sequence[ModelRunner | NativeRunner],
        max_sequences: int,
        translation: Translation | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """Empty caches for ``max_sequences`` sequences of both models.

        Args:
            runners: Of the small and the large model, with as many slots.
            max_sequences: Sequences in flight.
            translation: Translation of their vocabularies; None where both have the same.
            most_bytes: Of the states that models keep in caches of their own, of all sequences that
                are open; None for as many as they need.
        """
        self._most_bytes = most_bytes
        self._preempted: dict[int, _Preempted] = {}  # by the record's index
        self._again: dict[int, list[int]] = {}  # tokens recomputed before it was preempted
        self._runners = dict(zip(MODELS, runners, strict=True))
        self._slots = GatherTokens(runners, max_sequences, translation.map if translation else None)
        super().__init__(self._slots, translation)
        self._max_sequences = max_sequences

    def open(self, record: SequenceRecord) -> bool:
        """There is a slot for every row of the router; memory may be short."""
        index = record.index
        if index in self._sequences:  # it was restored
            return True
        waiting = self._preempted.get(index)
        wanted = 0.0 if waiting is None else _ROOM * waiting.num_bytes
        # One alone has to try: nobody else could make room.
        bounded = self._most_bytes is not None and self._sequences
        if bounded and self._held_bytes() + wanted >= (self._most_bytes or 0):
            return False
        if waiting is None:
            prompts = [record.prompt_of(name) for name in MODELS]
            self._sequences[index] = self._slots.open(prompts)
        else:
            self._sequences[index] = self._load(record, waiting.memory)
            self._again[index] = waiting.recomputed
            del self._preempted[index]
        return True

    def preempt(self, record: SequenceRecord) -> None:
        """What both models keep goes to host memory until the sequence is opened again.

        Snapshots do not: a rewind computes again what lies behind it.
        """
        sequence = self._sequences[record.index]
        memory = {name: tensor.cpu() for name, tensor in self.save(record).items()}
        recomputed = [self._recomputed(index, sequence) for index in range(len(MODELS))]
        self.close(record)
        self._preempted[record.index] = _Preempted(memory, recomputed)

    def close(self, record: SequenceRecord) -> None:
        """Empties the slot."""
        super().close(record)
        self._again.pop(record.index, None)

    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """As :meth:`GatherTokens.save`."""
        return self._slots.save(self._sequences[record.index])

    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Fills a slot at once, or waits for room as a preempted sequence does."""
        number = self._load(record, memory)  # which refuses what is of another pair
        if self._most_bytes is None:
            self._sequences[record.index] = number
            return
        self._slots.close(number)
        self._preempted[record.index] = _Preempted(memory, [0] * len(MODELS))

    def _load(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> int:
        prompts = [record.prompt_of(name) for name in MODELS]
        return self._slots.load(prompts, memory)

    def _held_bytes(self) -> int:
        return sum(map(self._slots.num_bytes, self._sequences.values()))

    def _check_room(self) -> None:
        """Before a pass: what the last ones have left in memory."""
        if self._most_bytes is None or (held := self._held_bytes()) <= self._most_bytes:
            return
        raise OutOfPages(
            f"the states of {len(self._sequences)} sequences take {held} bytes, more than"
            f" kv_memory_bytes={self._most_bytes}; raise it, or lower the token budgets"
        )

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

    def _compute(
        self, model: str, records: Sequence[SequenceRecord], wanted: Sequence[int]
    ) -> torch.Tensor:
        """One padded forward pass."""
        index, sequences = MODELS.index(model), self._numbers(records)
        self._check_room()
        unseen = [self._slots.unseen(index, sequence) for sequence in sequences]
        runner = self._runners[model]
        if isinstance(runner, ModelRunner):
            return runner.forward(sequences, unseen, wanted)
        return runner.forward(sequences, unseen)  # one row each: such a pair does not draft

    def _recomputed(self, index: int, sequence: int) -> int:
        """As the caches say, and said before it was preempted."""
        record = next(own for own, number in self._sequences.items() if number == sequence)
        before = self._again.get(record, [0] * len(MODELS))
        return before[index] + self._slots.recomputed(index, sequence)
