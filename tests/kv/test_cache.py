"""The paged KV cache against its plain model (kv_rules.py), and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import glimprouter as gr
from kv_model import token_view
from kv_rules import LAYOUTS, MAX_SEQUENCES, STEPS, STEPS_A_RUN, Cache, CacheOfTwoPools

Cache.TestCase.settings = CacheOfTwoPools.TestCase.settings = settings(
    max_examples=STEPS // STEPS_A_RUN,
    stateful_step_count=STEPS_A_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCacheAgainstModel = Cache.TestCase
TestTwoPoolsAgainstModel = CacheOfTwoPools.TestCase


def filled(pool: gr.PagePool, tokens: int) -> tuple[gr.KvCache, int]:
    """A cache with one sequence whose tokens model 0 has computed."""
    cache = gr.KvCache(pool, MAX_SEQUENCES)
    sequence = cache.open([list(range(tokens)), [1]])
    cache.complete(cache.prepare(0, [sequence]))
    return cache, sequence


def test_of_two_forks_in_one_batch_one_page_is_copied() -> None:
    """The second writes into the page itself: exactly one new page is enough."""
    pool = gr.PagePool(LAYOUTS, arena_bytes=3 * 3072, sector_bytes=3072)
    cache, parent = filled(pool, tokens=41)  # 11 pages of 12, the last one partly filled
    pool.limit_sectors(1)
    child = cache.fork(parent)
    for sequence in (parent, child):
        cache.append(0, sequence, [5, 6])
    assert pool.available(0) == 1
    batch = cache.prepare(0, [parent, child])
    assert pool.available(0) == 0
    assert (batch.block_table[0, :10] == batch.block_table[1, :10]).all()
    assert batch.block_table[0, 10] != batch.block_table[1, 10]
    cache.check_invariants()


def test_saved_and_loaded_elsewhere() -> None:
    pool = gr.PagePool(LAYOUTS, arena_bytes=8 * 3072, sector_bytes=3072)
    cache, sequence = filled(pool, tokens=9)
    for position in range(9):
        page = cache.pages(0, sequence)[position // 4]
        token_view(pool.memory, LAYOUTS[0], page, position % 4)[:] = position
    saved = cache.save(sequence)
    other = gr.KvCache(gr.PagePool(LAYOUTS, arena_bytes=8 * 3072, sector_bytes=3072), 1)
    loaded = other.load(saved)
    assert other.num_computed_tokens(0, loaded) == 9
    assert other.save(loaded) == saved


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_damaged_bytes_are_refused(damage: str) -> None:
    cache, sequence = filled(gr.PagePool(LAYOUTS, arena_bytes=8 * 3072), tokens=9)
    saved = bytearray(cache.save(sequence))
    for place in range(0, len(saved), 7):
        bad = bytearray(saved)
        if damage == "flip":
            bad[place] ^= 4
        broken = {"cut": saved[:place], "flip": bad, "foreign": b"x" * place, "empty": b""}[damage]
        for read in (cache.load, cache.check_saved):
            with pytest.raises(ValueError, match=r"save\(\)|damaged|format"):
                read(bytes(broken))
    assert cache.sequences == [sequence]


def test_another_layout_is_named() -> None:
    cache, sequence = filled(gr.PagePool(LAYOUTS, arena_bytes=8 * 3072), tokens=9)
    wider = gr.KvLayout(num_layers=2, num_kv_heads=1, head_dim=4, page_size=4, dtype="float32")
    other = gr.KvCache(gr.PagePool([wider, LAYOUTS[1]], arena_bytes=8 * 3072), 1)
    with pytest.raises(ValueError, match=r"head_dim differs.*expected.*got"):
        other.load(cache.save(sequence))


def test_memory_flows_between_the_models() -> None:
    """Sectors that one model has left are the other's."""
    pool = gr.PagePool(LAYOUTS, arena_bytes=5 * 3072, sector_bytes=3072)
    cache = gr.KvCache(pool, 2)
    sequence = cache.open([[1] * 190, [1]])
    cache.complete(cache.prepare(0, [sequence]))
    assert pool.num_free_sectors == 0
    assert pool.available(1) == 0
    with pytest.raises(gr.OutOfPages, match="model 1 wants 1 and could have 0"):
        cache.prepare(1, [sequence])
    cache.close(sequence)
    assert pool.available(1) == 8
    other = cache.open([[1], [1] * 64])
    cache.complete(cache.prepare(1, [other]))
    assert pool.owned(1) == 8


def test_two_pools_are_short_of_memory_one_by_one() -> None:
    """What one model could have is none of the other's; all of a load comes, or nothing."""
    pools = [gr.PagePool(LAYOUTS, sectors * 3072, sector_bytes=3072) for sectors in (9, 9)]
    cache = gr.KvCache(pools, 2)
    sequence = cache.open([[1] * 90, [1] * 64])
    for model in range(2):
        cache.complete(cache.prepare(model, [sequence]))
    saved = cache.save(sequence)
    other = cache.open([[1], [1] * 65])
    with pytest.raises(gr.OutOfPages, match="model 1 wants 9 and could have 8"):
        cache.prepare(1, [other])
    cache.complete(cache.prepare(0, [other]))
    pools[1].limit_sectors(4)
    cache.close(other)
    before = [pool.owned(model) for model, pool in enumerate(pools)]
    with pytest.raises(gr.OutOfPages, match="model 1 wants 8"):
        cache.load(saved)
    assert [pool.owned(model) for model, pool in enumerate(pools)] == before
    cache.close(sequence)
    assert cache.save(cache.load(saved)) == saved
    cache.check_invariants()


def test_what_one_pool_saved_two_pools_load() -> None:
    shared = gr.KvCache(gr.PagePool(LAYOUTS, 20 * 3072, sector_bytes=3072), 1)
    sequence = shared.open([[1] * 30, [2] * 20])
    for model in range(2):
        shared.complete(shared.prepare(model, [sequence]))
    saved = shared.save(sequence)
    apart = gr.KvCache([gr.PagePool(LAYOUTS, 8 * 3072, sector_bytes=3072) for _ in range(2)], 1)
    assert apart.save(apart.load(saved)) == saved


def test_other_pools_are_refused() -> None:
    pool, reversed_pool = (
        gr.PagePool(layouts, 8 * 3072, sector_bytes=3072) for layouts in (LAYOUTS, LAYOUTS[::-1])
    )
    alone = gr.PagePool(LAYOUTS[:1], 8 * 3072, sector_bytes=3072)
    for pools, message in (
        ([], "a page pool is needed"),
        ([pool, None], "for each model"),
        ([pool], "one pool for each of them, got 1"),
        ([pool] * 3, "pool 0 has the layouts of 2 models"),
        ([pool, alone], "pool 1 has the layouts of 1 models"),
        ([pool, reversed_pool], "pool 1"),
    ):
        with pytest.raises(ValueError, match=message):
            gr.KvCache(pools, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layouts": []}, "needs a KV layout"),
        ({"arena_bytes": 100}, "too small"),
        ({"sector_bytes": 3000}, "multiple of 256"),
        ({"sector_bytes": 256}, "hold a page of each"),
    ],
)
def test_bad_pool(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gr.PagePool(**{"layouts": LAYOUTS, "arena_bytes": 8 * 3072, **changed})
