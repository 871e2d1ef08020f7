"""The engine over plain Hugging Face attention: the reference for the one over pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from glimprouter.hf.engine.gather_runner import ModelRunner
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.events import TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.saved import bytes_as_tensor, tensor_as_bytes
from glimprouter.kv import TokenLedger

_LEDGER, _EXCESS = "ledger", "excess"  # names in what is saved
_MAX_CATCH_UP = 16  # rows that catch up together: they are padded to the longest


class GatherEngine:
    """Plain Hugging Face attention: rows that catch up are padded, rows that decode are not."""

    def __init__(
        self, small: Any, large: Any, max_sequences: int, translation: Translation | None = None
    ) -> None:
        """Empty caches for ``max_sequences`` sequences of both models.

        Args:
            small: The small model.
            large: The large model.
            max_sequences: Sequences in flight.
            translation: Of their vocabularies; None where both have the same.

        Raises:
            ValueError: A layer keeps state other than keys and values.
        """
        self._max_batch = max_sequences
        self._runners = {
            name: ModelRunner(name, model, max_sequences)
            for name, model in zip(MODELS, (small, large), strict=True)
        }
        self._translation = translation
        self._ledgers: dict[int, TokenLedger] = {}  # by the record's index
        self._excess: dict[int, dict[str, int]] = {}
        self._map = translation.map if translation else None

    def open(self, record: SequenceRecord) -> bool:
        """There is a slot for every row of the router."""
        if record.index not in self._ledgers:  # else it was restored
            self._ledgers[record.index] = TokenLedger(self._map)
            self._excess[record.index] = dict.fromkeys(MODELS, 0)
        return True

    def close(self, record: SequenceRecord) -> None:
        """Empties the slot in both caches."""
        self._empty(record.row)
        del self._ledgers[record.index], self._excess[record.index]

    def _empty(self, row: int) -> None:
        for runner in self._runners.values():
            runner.cache.free(row)

    def preempt(self, record: SequenceRecord) -> None:
        """Never needed: memory grows."""
        raise RuntimeError("the gathering engine does not run out of pages")

    def fork(self, record: SequenceRecord, twin: SequenceRecord) -> None:
        """Copies the slots of both models."""
        try:
            for runner in self._runners.values():
                runner.cache.copy(record.row, twin.row)
        except BaseException:
            self._empty(twin.row)
            raise
        self._ledgers[twin.index] = self._ledgers[record.index].copy()
        self._excess[twin.index] = dict(self._excess[record.index])

    def rewind(self, record: SequenceRecord) -> None:
        """Truncates ledger and slots."""
        ledger, kept = self._ledgers[record.index], len(record.generated)
        if kept >= len(ledger):
            return
        cuts = ledger.truncate(kept)
        for index, name in enumerate(MODELS):
            ids, spoiled = cuts[index if self._map else 0]
            cache = self._runners[name].cache
            dropped = cache.truncate(record.row, len(record.prompt_of(name)) + ids)
            self._excess[record.index][name] += min(dropped, spoiled)
            if dropped:
                cache.truncate(
                    record.row, record.kept_of(name, cache.lengths[record.row], cut=True)
                )

    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """Keys and values as ``"<model>.<layer>.keys"``, the ledger, and the excess ``[2]``."""
        memory = {
            _LEDGER: bytes_as_tensor(self._ledgers[record.index].save()),
            _EXCESS: torch.tensor(list(self._excess[record.index].values())),
        }
        for name, runner in self._runners.items():
            held = runner.cache.read(record.row)
            memory.update({f"{name}.{part}": tensor for part, tensor in held.items()})
        return memory

    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Fills the slots of the record's row at once: there is room."""
        ledger = TokenLedger.load(tensor_as_bytes(memory[_LEDGER]), self._map)
        try:
            for name, runner in self._runners.items():
                mine = (part for part in memory if part.startswith(f"{name}."))
                held = {p.removeprefix(f"{name}."): memory[p].to(runner.device) for p in mine}
                runner.cache.restore(record.row, held)
        except BaseException:
            self._empty(record.row)
            raise
        self._ledgers[record.index] = ledger
        self._excess[record.index] = dict(zip(MODELS, memory[_EXCESS].tolist(), strict=True))

    def _catch_up(self, model: str, record: SequenceRecord) -> TokenLedger:
        """The ledger, with all that was written in the model's vocabulary."""
        ledger = self._ledgers[record.index]
        for writer, ids in record.written_since(len(ledger)):
            ledger.append(writer, ids)
        index = MODELS.index(model)
        if self._translation is not None and not ledger.caught_up(index):
            spans = ledger.pending_spans(index)
            kept = ledger.resolve(index, [self._translation.tokenize(index, s) for s in spans])
            cache = self._runners[model].cache
            dropped = cache.truncate(record.row, len(record.prompt_of(model)) + kept)
            self._excess[record.index][model] += dropped
        return ledger

    def length(self, model: str, record: SequenceRecord) -> int:
        """Tokens of a sequence up to the frontier in a model's vocabulary, prompt included."""
        ledger = self._catch_up(model, record)
        return len(record.prompt_of(model)) + ledger.count(MODELS.index(model))

    def token_ids(self, model: str, record: SequenceRecord) -> list[int]:
        """All that was generated, in a model's vocabulary."""
        return self._catch_up(model, record).ids(MODELS.index(model))

    def counts(self, record: SequenceRecord) -> dict[str, TokenCounts]:
        """By model."""
        ledger, excess = self._ledgers[record.index], self._excess[record.index]
        return {
            name: TokenCounts(ledger.count(i), ledger.retokenized(i), excess[name])
            for i, name in enumerate(MODELS)
        }

    def _unseen(self, model: str, record: SequenceRecord) -> list[int]:
        ledger = self._catch_up(model, record)
        prompt, cache = record.prompt_of(model), self._runners[model].cache
        seen = cache.lengths[record.row]
        if seen == len(prompt) + ledger.count(MODELS.index(model)):  # it was rewound to here
            seen = record.kept_of(model, seen, cut=False)
            cache.truncate(record.row, seen)
        return prompt[seen:] + ledger.ids(MODELS.index(model), max(0, seen - len(prompt)))

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
        runner, rows = self._runners[model], [record.row for record in records]
        starts = [runner.cache.lengths[row] for row in rows]
        logits = runner.forward(rows, unseen)
        for record, start in zip(records, starts, strict=True):
            record.note_pass(model, start)
        return logits
