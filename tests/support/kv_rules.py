"""The paged KV cache and its plain model (kv_model.py) driven side by side, short of memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import glimprouter as gr
from kv_model import CacheModel, token_view

LAYOUTS = [
    gr.KvLayout(num_layers=2, num_kv_heads=1, head_dim=2, page_size=4, dtype="float32"),
    gr.KvLayout(num_layers=3, num_kv_heads=2, head_dim=4, page_size=8, dtype="float32"),
]
MAX_SEQUENCES = 6
# Steps in all: some thousands here, GLIMPROUTER_PROPERTY_STEPS=100000 for a night.
STEPS = int(os.environ.get("GLIMPROUTER_PROPERTY_STEPS", "5000"))
STEPS_A_RUN = 50

ids = st.lists(st.integers(0, 999), min_size=1, max_size=9)


class Cache(RuleBasedStateMachine):
    """Every call goes to both; tables, counts and every written value must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = self.make_pools()  # [models]
        for pool in self.pools:
            pool.poison_freed_pages(0xA5)
        self.cache = gr.KvCache(self.pools, MAX_SEQUENCES)
        self.model = CacheModel([layout.page_size for layout in LAYOUTS])
        self.flying: list[gr.RaggedBatch] = []
        self.saved: list[tuple[bytes, Any]] = []
        self.counter = 0
        self.sector_limits = [pool.num_sectors for pool in self.pools]

    def make_pools(self) -> list[gr.PagePool]:
        """One for both models."""
        return [gr.PagePool(LAYOUTS, arena_bytes=20 * 3072, sector_bytes=3072)] * 2

    def idle(self) -> list[int]:
        return [s for s, cached in sorted(self.model.sequences.items()) if not cached.in_flight]

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(self.idle()), label="sequence")

    def full(self) -> bool:
        return len(self.model.sequences) == MAX_SEQUENCES

    @rule(small=ids, large=ids)
    def open(self, small: list[int], large: list[int]) -> None:
        if self.full():
            with pytest.raises(RuntimeError, match="sequences are in use"):
                self.cache.open([small, large])
            return
        self.model.open(self.cache.open([small, large]), [small, large])

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), more=ids)
    def append(self, data: st.DataObject, more: list[int]) -> None:
        sequence = self.pick(data)
        self.cache.append(0, sequence, more)
        self.model.sequences[sequence].ledger.append(0, more)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), model=st.integers(0, 1))
    def prepare(self, data: st.DataObject, model: int) -> None:
        chosen = data.draw(st.permutations(self.idle()), label="order")
        chosen = chosen[: data.draw(st.integers(1, len(chosen)), label="count")]
        behind = [
            s
            for s in chosen
            if self.model.sequences[s].committed[model] < self.model.sequences[s].length(model)
        ]
        if behind != chosen:
            with pytest.raises(ValueError, match="has no token that model"):
                self.cache.prepare(model, chosen)
        if not behind:
            return
        ends = self.draw_ends(data, model, behind)
        own = self.model.ends(model, behind) if ends is None else ends
        if self.model.pages_wanted(model, behind, own) > self.pools[model].available(model):
            with pytest.raises(gr.OutOfPages, match="close or preempt"):
                self.cache.prepare(model, behind, ends)
            return
        batch = self.cache.prepare(model, behind, ends)
        self.check_batch(batch, model, behind, own)
        self.model.prepare(model, behind, own)
        self.flying.append(batch)

    def draw_ends(self, data: st.DataObject, model: int, behind: list[int]) -> list[int] | None:
        """Where a pass ends; None for the frontiers, which are tried most."""
        if not data.draw(st.sampled_from([False, False, True]), label="stops before"):
            return None
        ends = []
        for at, sequence in enumerate(behind):
            cached = self.model.sequences[sequence]
            low, high = cached.committed[model] + 1, cached.length(model)
            for wrong in (low - 1, high + 1, -1):
                wrongs = [*self.model.ends(model, behind[:at]), wrong]
                wrongs += self.model.ends(model, behind[at + 1 :])
                with pytest.raises(ValueError, match=f"cannot end at {wrong}"):
                    self.cache.prepare(model, behind, wrongs)
            ends.append(data.draw(st.integers(low, high), label="end"))
        for wrongs in ([], ends[1:], [*ends, 1]):
            with pytest.raises(ValueError, match="an entry for each"):
                self.cache.prepare(model, behind, wrongs)
        return ends

    def check_batch(
        self, batch: gr.RaggedBatch, model: int, sequences: list[int], lengths: list[int]
    ) -> None:
        """The batch is exactly the unseen tokens, as far as it goes."""
        unseen = [
            self.model.sequences[s].ids(model)[self.model.sequences[s].committed[model] : length]
            for s, length in zip(sequences, lengths, strict=True)
        ]
        ends = np.cumsum([0, *map(len, unseen)])
        assert batch.sequences.tolist() == sequences
        assert batch.ids.tolist() == [token for part in unseen for token in part]
        assert batch.cu_seqlens.tolist() == ends.tolist()
        assert batch.last_rows.tolist() == (ends[1:] - 1).tolist()
        assert batch.seq_lens.tolist() == lengths
        positions = [
            position
            for s, length in zip(sequences, lengths, strict=True)
            for position in range(self.model.sequences[s].committed[model], length)
        ]
        assert batch.positions.tolist() == positions
        size = LAYOUTS[model].page_size
        owner = np.repeat(np.arange(len(sequences)), np.diff(ends))
        pages = batch.block_table[owner, batch.positions // size].astype(np.int64)
        assert batch.slot_mapping.tolist() == (pages * size + batch.positions % size).tolist()
        assert not (batch.block_table[:, 0] == 0).any(), "the null page belongs to nobody"

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), complete=st.sampled_from([True, True, False]))
    def land(self, data: st.DataObject, complete: bool) -> None:
        """Writes every new token; an abandoned batch has written only some of them."""
        place = data.draw(st.integers(0, len(self.flying) - 1), label="batch")
        self.write_and_land(self.flying.pop(place), complete, data)

    def write_and_land(self, batch: gr.RaggedBatch, complete: bool, data: st.DataObject) -> None:
        model, sequences = batch.model, batch.sequences.tolist()
        owner = np.repeat(batch.sequences, np.diff(batch.cu_seqlens))
        count = len(batch.ids) if complete else data.draw(st.integers(0, len(batch.ids)))
        for i in range(count):
            self.counter += 1
            page, place = divmod(int(batch.slot_mapping[i]), LAYOUTS[model].page_size)
            token_view(self.pools[model].memory, LAYOUTS[model], page, place)[:] = self.counter
            self.model.write(model, int(owner[i]), int(batch.positions[i]), self.counter)
        (self.cache.complete if complete else self.cache.abandon)(batch)
        self.model.land(model, sequences, complete=complete)
        for again in (self.cache.complete, self.cache.abandon):
            with pytest.raises(RuntimeError, match="not in flight"):
                again(batch)

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        generated = len(self.model.sequences[sequence].ledger.written)
        wanted = data.draw(st.integers(-1, generated + 1), label="generated")
        if not 0 <= wanted <= generated:
            with pytest.raises(ValueError, match="cannot truncate"):
                self.cache.truncate(sequence, wanted)
            return
        self.cache.truncate(sequence, wanted)
        self.model.truncate(sequence, wanted)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), model=st.integers(0, 1))
    def forget(self, data: st.DataObject, model: int) -> None:
        sequence = self.pick(data)
        computed = self.model.sequences[sequence].committed[model]
        count = data.draw(st.integers(-1, computed + 1), label="count")
        if not 0 <= count <= computed:
            with pytest.raises(ValueError, match="cannot forget"):
                self.cache.forget(model, sequence, count)
            return
        self.cache.forget(model, sequence, count)
        self.model.forget(model, sequence, count)

    @precondition(lambda self: self.idle() and not self.full())
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.model.copy(sequence, self.cache.fork(sequence))

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.cache.close(sequence)
        del self.model.sequences[sequence]
        with pytest.raises(IndexError, match="is not open"):
            self.cache.append(0, sequence, [1])

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), more=ids, model=st.integers(0, 1))
    def extend(self, data: st.DataObject, more: list[int], model: int) -> None:
        """The common case in one rule: tokens come, the model computes them."""
        sequence = self.pick(data)
        self.cache.append(0, sequence, more)
        self.model.sequences[sequence].ledger.append(0, more)
        ends = self.model.ends(model, [sequence])
        if self.model.pages_wanted(model, [sequence], ends) <= self.pools[model].available(model):
            batch = self.cache.prepare(model, [sequence])
            self.model.prepare(model, [sequence], ends)
            self.write_and_land(batch, True, data)

    @precondition(lambda self: self.flying)
    @rule()
    def misuse_in_flight(self) -> None:
        sequence = int(self.flying[0].sequences[0])
        for call in (
            lambda: self.cache.close(sequence),
            lambda: self.cache.append(0, sequence, [1]),
            lambda: self.cache.truncate(sequence, 0),
            lambda: self.cache.forget(0, sequence, 0),
            lambda: self.cache.fork(sequence),
            lambda: self.cache.save(sequence),
            lambda: self.cache.prepare(0, [sequence]),
        ):
            with pytest.raises(RuntimeError, match="in flight"):
                call()

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        kept = self.model.deep_copy(self.model.sequences[sequence])
        self.saved.append((self.cache.save(sequence), kept))
        self.cache.close(sequence)
        del self.model.sequences[sequence]

    @precondition(lambda self: self.saved and not self.full())
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        state, kept = data.draw(st.sampled_from(self.saved), label="saved")
        assert self.cache.check_saved(state) == kept.committed
        if not self.fits([len(pages) for pages in kept.pages]):
            with pytest.raises(gr.OutOfPages, match="out of pages"):
                self.cache.load(state)
            return
        self.model.sequences[self.cache.load(state)] = self.model.deep_copy(kept)

    def fits(self, wanted: list[int]) -> bool:
        """Whether pages of both models can be had together: each opens sectors of its own."""
        needed: dict[gr.PagePool, int] = {}
        for model, (pool, layout) in enumerate(zip(self.pools, LAYOUTS, strict=True)):
            in_a_sector = pool.sector_bytes // layout.page_bytes
            loose = pool.available(model) - self.free_sectors(model) * in_a_sector
            more = -(-max(0, wanted[model] - loose) // in_a_sector)
            needed[pool] = needed.get(pool, 0) + more
        return all(
            needed[pool] <= self.free_sectors(model) for model, pool in enumerate(self.pools)
        )

    def free_sectors(self, model: int) -> int:
        """That the model's pool may still use."""
        pool = self.pools[model]
        return max(0, self.sector_limits[model] - (pool.num_sectors - pool.num_free_sectors))

    @rule(more=st.sampled_from([0, 1, 2, 20, 20]), model=st.integers(0, 1))
    def limit(self, more: int, model: int) -> None:
        """Out of memory may come at any allocation."""
        pool = self.pools[model]
        limit = min(pool.num_sectors, pool.num_sectors - pool.num_free_sectors + more)
        pool.limit_sectors(limit)
        for other, own in enumerate(self.pools):
            if own is pool:
                self.sector_limits[other] = limit

    @invariant()
    def same_state(self) -> None:
        self.cache.check_invariants()
        assert self.cache.sequences == sorted(self.model.sequences)
        for model, layout in enumerate(LAYOUTS):
            assert self.pools[model].owned(model) == self.model.owned(model)
            for sequence, cached in self.model.sequences.items():
                assert self.cache.num_computed_tokens(model, sequence) == cached.committed[model]
                pages = self.cache.pages(model, sequence)
                assert len(pages) == len(cached.pages[model])
                for position, value in enumerate(self.model.values(model, sequence)):
                    page, place = pages[position // layout.page_size], position
                    memory = self.pools[model].memory
                    stored = token_view(memory, layout, page, place % layout.page_size)
                    assert (stored == value).all(), (model, sequence, position)
        for sequence, cached in self.model.sequences.items():
            assert self.cache.frontier(sequence) == len(cached.ledger.written)
            for model in range(2):
                assert self.cache.generated(model, sequence) == cached.ledger.ids(model)
                assert self.cache.excess(model, sequence) == cached.excess[model]
                assert self.cache.caught_up(model, sequence) == cached.caught_up(model)


class CacheOfTwoPools(Cache):
    """As where the models are on two devices: a page id means something in its model's pool only.

    The second is short of memory sooner.
    """

    def make_pools(self) -> list[gr.PagePool]:
        return [
            gr.PagePool(LAYOUTS, arena_bytes=sectors * 3072, sector_bytes=3072)
            for sectors in (12, 8)
        ]

    @invariant()
    def pages_of_its_models_only(self) -> None:
        assert [self.pools[0].owned(1), self.pools[1].owned(0)] == [0, 0]
