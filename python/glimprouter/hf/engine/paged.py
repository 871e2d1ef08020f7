"""Both models on one arena of pages: ragged batches, preemption when pages run short."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.hf.attention.paged import kv_layout, paged_forward
from glimprouter.hf.engine.arena_plan import ArenaPlan
from glimprouter.hf.engine.base import Engine
from glimprouter.hf.engine.kept_pool import KeptPool
from glimprouter.hf.graphs.compiled import CompiledForward
from glimprouter.hf.graphs.decode_graphs import DecodeGraphs
from glimprouter.hf.pair.devices import default_arena_bytes
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.saved import bytes_as_tensor, tensor_as_bytes
from glimprouter.kv import KvCache, PagePool

_MAX_BATCH_TOKENS = 4096  # of one forward pass: bounds the memory of its activations
# Text may have more tokens in the vocabulary of the model that did not write it.
_TRANSLATED_GROWTH = 2
_SAVED = "kv"  # name in what is saved


def _most_tokens(record: SequenceRecord) -> list[int]:
    """Most tokens of each model, prompt included."""
    return [len(record.prompt_of(name)) + record.max_new_tokens for name in MODELS]


def _bounded(
    records: Sequence[SequenceRecord], tokens: Mapping[int, int]
) -> Iterator[list[SequenceRecord]]:
    """Groups of at most so many tokens, or of one sequence."""
    group: list[SequenceRecord] = []
    total = 0
    for record in records:
        if group and total + tokens[record.index] > _MAX_BATCH_TOKENS:
            yield group
            group, total = [], 0
        group.append(record)
        total += tokens[record.index]
    if group:
        yield group


class PagedEngine(Engine):
    """All rows that wait for a model in one packed forward pass over pages.

    The arena is shared: pages go to whichever model needs them. When they run short, sequences are
    preempted to host memory and taken back later.
    """

    def __init__(
        self,
        small: Any,
        large: Any,
        records: Sequence[SequenceRecord],
        *,
        max_sequences: int,
        arena_bytes: int | None,
        translation: Translation | None,
        compiled: Mapping[str, CompiledForward] | None,
        device: str,
        spare_rows: bool,
        kept: KeptPool | None,
        fused: Mapping[str, FusedLayers],
    ) -> None:
        """An arena that holds the longest sequences, as far as it may.

        Args:
            small: The small model.
            large: The large model.
            records: The sequences to come.
            max_sequences: Sequences in flight.
            arena_bytes: Memory for keys and values of both models; None for what
                ``max_sequences`` of the longest sequences need, up to half of the device's.
            translation: Translation of the models' vocabularies; None where both have the same.
            compiled: Forward passes of both models as graphs, by name; None computes eagerly.
            device: Where the pages lie: beside the models.
            spare_rows: Whether more sequences may come, forks or loaded ones: ``max_sequences`` as
                long as the longest are planned for then.
            kept: Where the pool comes from, with graphs of decode passes; None for a pool of its
                own, and no graphs.
            fused: Layers that eager passes compute in their fused form, by the model's name; none
                of a model that is not named.

        Raises:
            ValueError: The arena cannot hold the longest sequence.
        """
        self._models = dict(zip(MODELS, (small, large), strict=True))
        self._compiled = compiled
        self._fused = fused
        self._device = device
        self._plan = plan = ArenaPlan([kv_layout(small), kv_layout(large)])
        self._graphs: Mapping[str, DecodeGraphs] = {}
        held = 0 if kept is None else kept.free_bytes
        most = default_arena_bytes(device, held) if arena_bytes is None else arena_bytes
        sectors = plan.wanted(
            [_most_tokens(record) for record in records],
            most,
            take_all=arena_bytes is not None,
            max_sequences=max_sequences,
            spare_rows=spare_rows,
            growth=1 if translation is None else _TRANSLATED_GROWTH,
        )
        self._arena_bytes = sectors * plan.sector_bytes
        if kept is None:
            self._pool = PagePool(plan.layouts, self._arena_bytes, plan.sector_bytes, device)
        else:
            self._pool, self._graphs = kept.take(
                self, plan.layouts, sectors, most // plan.sector_bytes
            )
        self._cache = KvCache(self._pool, max_sequences, translation.map if translation else None)
        super().__init__(self._cache, translation)
        # Preempted ones, and how many tokens each model has computed of them.
        self._saved: dict[int, tuple[bytes, list[int]]] = {}

    def open(self, record: SequenceRecord) -> bool:
        """Takes a sequence in when its tokens, and some pages more, fit."""
        saved = self._saved.get(record.index)
        tokens = [len(record.prompt_of(name)) + len(record.generated) for name in MODELS]
        if saved is not None:  # in its own vocabulary a model may have computed more
            tokens = [max(pair) for pair in zip(tokens, saved[1], strict=True)]
        # Room for each of the others to grow, or one of them would be preempted at once.
        spare = 1 + len(self._sequences)
        wanted = [pages + spare for pages in self._plan.pages(tokens)]
        if self._sequences and not self._pool.can_allocate(wanted):
            return False
        if saved is None:
            sequence = self._cache.open([record.prompt.small, record.prompt.large])
        else:
            sequence = self._cache.load(saved[0])
            del self._saved[record.index]
        self._sequences[record.index] = sequence
        return True

    def preempt(self, record: SequenceRecord) -> None:
        """Keys and values of both models go to host memory until the sequence is opened again."""
        sequence = self._sequences.pop(record.index)
        computed = [
            self._cache.num_computed_tokens(index, sequence) for index in range(len(MODELS))
        ]
        self._saved[record.index] = self._cache.save(sequence), computed
        self._cache.close(sequence)

    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """What ``KvCache.save`` gives."""
        return {_SAVED: bytes_as_tensor(self._cache.save(self._sequences[record.index]))}

    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Kept as a preempted sequence; pages are taken when it is opened."""
        saved = tensor_as_bytes(memory[_SAVED])
        computed = self._cache.check_saved(saved)
        most = [max(pair) for pair in zip(_most_tokens(record), computed, strict=True)]
        self._plan.check(self._arena_bytes, self._plan.sectors(most))
        self._saved[record.index] = saved, computed

    def groups(
        self, model: str, records: Sequence[SequenceRecord]
    ) -> Iterable[list[SequenceRecord]]:
        """All of them, unless their unseen tokens are very many.

        On a device those with long pieces, which are attended otherwise, run apart.
        """
        unseen = {record.index: self._unseen(model, record) for record in records}
        apart = MANY_TOKENS if self._device != "cpu" else math.inf
        for part in (
            [record for record in records if unseen[record.index] < apart],
            [record for record in records if unseen[record.index] >= apart],
        ):
            yield from _bounded(part, unseen)

    def _compute(self, model: str, sequences: Sequence[int]) -> torch.Tensor:
        """One packed forward pass over exactly the unseen tokens."""
        batch = self._cache.prepare(MODELS.index(model), sequences)
        try:
            graphs = self._graphs.get(model)
            if graphs is not None and graphs.takes(batch):
                logits = graphs(batch)
            elif self._compiled is None:
                fused = self._fused.get(model)
                logits = paged_forward(self._models[model], self._pool, batch, fused)
            else:
                logits = self._compiled[model](self._pool, batch)
        except BaseException:
            self._cache.abandon(batch)
            raise
        self._cache.complete(batch)
        return logits
