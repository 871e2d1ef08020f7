"""Both models on one arena of pages: ragged batches, preemption when pages run short."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.hf.attention.paged import kv_layout, paged_forward
from glimprouter.hf.engine.kept_pool import KeptPool
from glimprouter.hf.graphs.compiled import CompiledForward
from glimprouter.hf.graphs.decode_graphs import DecodeGraphs
from glimprouter.hf.pair.devices import default_arena_bytes
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.events import TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.saved import bytes_as_tensor, tensor_as_bytes
from glimprouter.kv import KvCache, PagePool

_MAX_BATCH_TOKENS = 4096  # of one forward pass: bounds the memory of its activations
_TRANSLATED_GROWTH = (
    2  # text may have more tokens in the vocabulary of the model that did not write
)


_NULL_SECTORS = 1  # the first one, which padding reads and writes
_SAVED = "kv"  # name in what is saved


def _most_tokens(record: SequenceRecord) -> list[int]:
    """Of each model, prompt included."""
    return [len(record.prompt_of(name)) + record.max_new_tokens for name in MODELS]


def _check_arena(arena_bytes: int, needed: int) -> None:
    if arena_bytes < needed:
        raise ValueError(
            f"an arena of {arena_bytes} bytes cannot hold the longest sequence, which may need"
            f" {needed}; raise kv_memory_bytes, or lower the token budgets"
        )


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


class PagedEngine:
    """All rows that wait for a model in one packed forward pass over pages.

    The arena is shared: pages go to whichever model needs them. When they run short, sequences are
    preempted to host memory and taken back later.
    """

    def __init__(
        self,
        small: Any,
        large: Any,
        records: Sequence[SequenceRecord],
        max_sequences: int,
        arena_bytes: int | None = None,
        translation: Translation | None = None,
        compiled: Mapping[str, CompiledForward] | None = None,
        device: str = "cpu",
        spare_rows: bool = False,
        kept: KeptPool | None = None,
        fused: Mapping[str, FusedLayers] | None = None,
    ) -> None:
        """An arena that holds the longest sequences, as far as it may.

        Args:
            small: The small model.
            large: The large model.
            records: The sequences to come.
            max_sequences: Sequences in flight.
            arena_bytes: Memory for keys and values of both models; None for what
                ``max_sequences`` of the longest sequences need, up to half of the device's.
            translation: Of the models' vocabularies; None where both have the same.
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
        self._fused = fused or {}
        self._layouts = [kv_layout(small), kv_layout(large)]
        self._max_batch = max_sequences
        self._translation = translation
        self._device = device
        self._graphs: Mapping[str, DecodeGraphs] = {}
        lengths = [_most_tokens(record) for record in records]
        held = 0 if kept is None else kept.free_bytes
        most = default_arena_bytes(device, held) if arena_bytes is None else arena_bytes
        sector_bytes = PagePool.default_sector_bytes(self._layouts)
        self._sectors_held = self._plan_sectors(lengths, arena_bytes, most, spare_rows)
        if kept is None:
            self._pool = PagePool(
                self._layouts, self._sectors_held * sector_bytes, sector_bytes, device
            )
        else:
            self._pool, self._graphs = kept.take(
                self, self._layouts, self._sectors_held, most // sector_bytes
            )
        self._cache = KvCache(self._pool, max_sequences, translation.map if translation else None)
        self._sequences: dict[int, int] = {}  # of the cache, by the record's index
        # Preempted ones, and how many tokens each model has computed of them.
        self._saved: dict[int, tuple[bytes, list[int]]] = {}

    def _pages(self, tokens: Sequence[int]) -> list[int]:
        """Pages for so many tokens of each model."""
        return [
            -(-count // layout.page_size)
            for count, layout in zip(tokens, self._layouts, strict=True)
        ]

    def _sectors(self, pages: Sequence[int], sector_bytes: int) -> int:
        """That hold so many pages of each model."""
        in_a_sector = (sector_bytes // layout.page_bytes for layout in self._layouts)
        return sum(-(-count // held) for count, held in zip(pages, in_a_sector, strict=True))

    def _plan_sectors(
        self,
        lengths: Sequence[Sequence[int]],
        arena_bytes: int | None,
        most: int,
        spare_rows: bool,
    ) -> int:
        """Of the arena, the null page's included: what the sequences need, as far as there is."""
        sector_bytes = PagePool.default_sector_bytes(self._layouts)
        each = sorted(self._sectors(self._pages(pair), sector_bytes) for pair in lengths)[::-1]
        largest = each[0] if each else 2
        _check_arena(most, (largest + _NULL_SECTORS) * sector_bytes)
        sectors = most // sector_bytes
        if arena_bytes is None:
            rows = each[: self._max_batch]
            together = self._max_batch * largest if spare_rows else max(sum(rows), largest)
            growth = 1 if self._translation is None else _TRANSLATED_GROWTH
            sectors = min(sectors, growth * together + _NULL_SECTORS)
        return sectors

    def open(self, record: SequenceRecord) -> bool:
        """Takes a sequence in when its tokens, and some pages more, fit."""
        saved = self._saved.get(record.index)
        tokens = [len(record.prompt_of(name)) + len(record.generated) for name in MODELS]
        if saved is not None:  # in its own vocabulary a model may have computed more
            tokens = [max(pair) for pair in zip(tokens, saved[1], strict=True)]
        # Room for each of the others to grow, or one of them would be preempted at once.
        spare = 1 + len(self._sequences)
        wanted = [pages + spare for pages in self._pages(tokens)]
        if self._sequences and not self._pool.can_allocate(wanted):
            return False
        if saved is None:
            sequence = self._cache.open([record.prompt.small, record.prompt.large])
        else:
            sequence = self._cache.load(saved[0])
            del self._saved[record.index]
        self._sequences[record.index] = sequence
        return True

    def close(self, record: SequenceRecord) -> None:
        """Frees the pages of both models."""
        self._cache.close(self._sequences.pop(record.index))

    def preempt(self, record: SequenceRecord) -> None:
        """Keys and values of both models go to host memory until the sequence is opened again."""
        sequence = self._sequences.pop(record.index)
        computed = [
            self._cache.num_computed_tokens(index, sequence) for index in range(len(MODELS))
        ]
        self._saved[record.index] = self._cache.save(sequence), computed
        self._cache.close(sequence)

    def fork(self, record: SequenceRecord, twin: SequenceRecord) -> None:
        """Shares every page; whoever writes into a shared one first gets a copy."""
        self._sequences[twin.index] = self._cache.fork(self._sequences[record.index])

    def rewind(self, record: SequenceRecord) -> None:
        """Truncates tokens, keys and values."""
        sequence, kept = self._sequences[record.index], len(record.generated)
        if kept >= self._cache.frontier(sequence):
            return
        before = [self._cache.num_computed_tokens(index, sequence) for index in range(len(MODELS))]
        self._cache.truncate(sequence, kept)
        for index, name in enumerate(MODELS):
            computed = self._cache.num_computed_tokens(index, sequence)
            if computed < before[index]:
                forgotten = computed - record.kept_of(name, computed, cut=True)
                self._cache.forget(index, sequence, forgotten)

    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """What ``KvCache.save`` gives."""
        return {_SAVED: bytes_as_tensor(self._cache.save(self._sequences[record.index]))}

    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Kept as a preempted sequence; pages are taken when it is opened."""
        saved = tensor_as_bytes(memory[_SAVED])
        computed = self._cache.check_saved(saved)
        sector_bytes = self._pool.sector_bytes
        most = [max(pair) for pair in zip(_most_tokens(record), computed, strict=True)]
        needed = self._sectors(self._pages(most), sector_bytes) + _NULL_SECTORS
        _check_arena(self._sectors_held * sector_bytes, needed * sector_bytes)
        self._saved[record.index] = saved, computed

    def _catch_up(self, model: str, record: SequenceRecord) -> int:
        """The cache's sequence, with all that was written in the model's vocabulary."""
        sequence = self._sequences[record.index]
        for writer, ids in record.written_since(self._cache.frontier(sequence)):
            self._cache.append(writer, sequence, ids)
        index = MODELS.index(model)
        if self._translation is not None and not self._cache.caught_up(index, sequence):
            spans = self._cache.pending_spans(index, sequence)
            own = [self._translation.tokenize(index, span) for span in spans]
            self._cache.resolve(index, sequence, own)
        return sequence

    def length(self, model: str, record: SequenceRecord) -> int:
        """Tokens of a sequence up to the frontier in a model's vocabulary, prompt included."""
        return self._cache.length(MODELS.index(model), self._catch_up(model, record))

    def token_ids(self, model: str, record: SequenceRecord) -> list[int]:
        """All that was generated, in a model's vocabulary."""
        return self._cache.generated(MODELS.index(model), self._catch_up(model, record))

    def counts(self, record: SequenceRecord) -> dict[str, TokenCounts]:
        """By model."""
        cache, sequence = self._cache, self._sequences[record.index]
        return {
            name: TokenCounts(
                cache.length(index, sequence) - len(record.prompt_of(name)),
                cache.retokenized(index, sequence),
                cache.excess(index, sequence),
            )
            for index, name in enumerate(MODELS)
        }

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

    def _unseen(self, model: str, record: SequenceRecord) -> int:
        """Tokens that the model has to compute: at least one, after a rewind too."""
        index, sequence = MODELS.index(model), self._catch_up(model, record)
        computed = self._cache.num_computed_tokens(index, sequence)
        unseen = self._cache.length(index, sequence) - computed
        if unseen == 0:  # it was rewound to here
            unseen = computed - record.kept_of(model, computed, cut=False)
            self._cache.forget(index, sequence, unseen)
        return unseen

    def forward(self, model: str, records: Sequence[SequenceRecord]) -> torch.Tensor:
        """One packed forward pass over exactly the unseen tokens."""
        rows = [self._sequences[record.index] for record in records]
        batch = self._cache.prepare(MODELS.index(model), rows)
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
        starts = batch.seq_lens - np.diff(batch.cu_seqlens)
        for record, start in zip(records, starts.tolist(), strict=True):
            record.note_pass(model, start)
        return logits
