"""Keys and values of one model as those of another in other types: page to page."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr

HEADS, SIZE, LAYERS = 2, 8, 3
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PAGES = {"float32": 4, "bfloat16": 8, "float16": 3}  # tokens a page
NAMES = list(TYPES)


def layout(dtype: str, **changed: int) -> gr.KvLayout:
    sizes = {"num_layers": LAYERS, "num_kv_heads": HEADS, "head_dim": SIZE, **changed}
    return gr.KvLayout(**sizes, page_size=PAGES[dtype], dtype=dtype)  # type: ignore[arg-type]


def compute(cache: gr.KvCache, pool: gr.PagePool, model: int, sequence: int, seed: int) -> None:
    """A forward pass that writes random keys and values, some of them awkward to round."""
    batch = cache.prepare(model, [sequence])
    generator = torch.Generator().manual_seed(seed)
    for layer in range(LAYERS):
        states = torch.randn((2, len(batch.ids), HEADS, SIZE), generator=generator)
        states[..., 0] = torch.tensor([1 + 2.0**-9, 1e-40, 65520.0, -(2.0**-25)])[layer]
        gr.append_kv(pool, layer, batch, states[0], states[1])
    cache.complete(batch)


def values(cache: gr.KvCache, pool: gr.PagePool, model: int, sequence: int) -> torch.Tensor:
    """All that a model holds, ``[layers, 2, tokens, heads, size]`` in the pages' type."""
    tokens = cache.num_computed_tokens(model, sequence)
    dtype = TYPES[NAMES[model]]
    out = torch.empty((LAYERS, 2, tokens, HEADS, SIZE), dtype=dtype)
    pages = cache.pages(model, sequence)
    for layer in range(LAYERS):
        gr.gather_kv(pool, model, layer, pages, out[layer, 0], out[layer, 1])
    return out


@settings(deadline=None, max_examples=150)
@given(
    first=st.integers(0, 12),
    more=st.integers(0, 25),
    source=st.integers(0, 2),
    target=st.integers(0, 2),
    forked=st.booleans(),
)
def test_the_target_has_the_source_rounded(
    first: int, more: int, source: int, target: int, forked: bool
) -> None:
    """The target has computed `first + 1` tokens by itself, the source all."""
    layouts = [layout(name) for name in NAMES]
    pool = gr.PagePool(layouts, arena_bytes=60 * 4096, sector_bytes=4096)
    pool.poison_freed_pages(0xA5)
    cache = gr.KvCache(pool, 2)
    sequence = cache.open([[5]] * 3)
    cache.append(0, sequence, [7] * first)
    compute(cache, pool, target, sequence, seed=1)
    own = values(cache, pool, target, sequence)
    if source == target:
        assert cache.cast_copy(source, target, sequence) == 0
        return
    cache.append(0, sequence, [8] * more)
    compute(cache, pool, source, sequence, seed=2)
    child = cache.fork(sequence) if forked else None
    before = values(cache, pool, source, sequence)
    assert cache.cast_copy(source, target, sequence) == more
    cache.check_invariants()
    assert cache.num_computed_tokens(target, sequence) == first + more + 1
    got = values(cache, pool, target, sequence)
    assert torch.equal(got[:, :, : first + 1], own)
    want = before[:, :, first + 1 :].float().to(got.dtype)
    assert torch.equal(got[:, :, first + 1 :], want)
    assert torch.equal(values(cache, pool, source, sequence), before)
    if child is not None:  # shared the target's last page
        assert cache.num_computed_tokens(target, child) == first + 1
        assert torch.equal(values(cache, pool, target, child), own)
    assert cache.cast_copy(source, target, sequence) == 0


def test_out_of_pages_changes_nothing() -> None:
    layouts = [layout(name) for name in NAMES]
    pool = gr.PagePool(layouts, arena_bytes=12 * 4096, sector_bytes=4096)
    cache = gr.KvCache(pool, 2)
    sequence = cache.open([[5] * 30] * 3)
    compute(cache, pool, 0, sequence, seed=3)
    pool.limit_sectors(pool.num_sectors - pool.num_free_sectors)
    with pytest.raises(gr.OutOfPages):
        cache.cast_copy(0, 1, sequence)
    assert (cache.num_computed_tokens(1, sequence), cache.pages(1, sequence)) == (0, [])
    cache.check_invariants()


@pytest.mark.parametrize(
    "changed", [{"num_layers": 2}, {"num_kv_heads": 1}, {"head_dim": 16}], ids=str
)
def test_another_geometry_is_refused(changed: dict[str, int]) -> None:
    pool = gr.PagePool([layout("float32"), layout("bfloat16", **changed)], 60 * 4096, 4096)
    cache = gr.KvCache(pool, 1)
    sequence = cache.open([[5]] * 2)
    with pytest.raises(ValueError, match="differ in type or page size only"):
        cache.cast_copy(0, 1, sequence)


def test_from_one_pool_to_another_is_refused() -> None:
    layouts = [layout("float32"), layout("bfloat16")]
    pools = [gr.PagePool(layouts, 60 * 4096, sector_bytes=4096) for _ in layouts]
    cache = gr.KvCache(pools, 1)
    sequence = cache.open([[5]] * 2)
    with pytest.raises(ValueError, match="different pools, on cpu and cpu: a cast-copy stays"):
        cache.cast_copy(0, 1, sequence)


def test_other_tokens_are_refused() -> None:
    """Prompts by templates of their own; and ids that another vocabulary reads otherwise."""
    layouts = [layout("float32"), layout("bfloat16")]
    pool = gr.PagePool(layouts, arena_bytes=60 * 4096, sector_bytes=4096)
    cache = gr.KvCache(pool, 1)
    sequence = cache.open([[1, 2, 3], [1, 9, 3]])
    compute(cache, pool, 0, sequence, seed=4)
    with pytest.raises(ValueError, match="different tokens at position 1"):
        cache.cast_copy(0, 1, sequence)
    assert cache.num_computed_tokens(1, sequence) == 0
    vocabulary_map = gr.VocabularyMap([[b"a", b"b"], [b"b", b"a"]], [])
    other = gr.KvCache(pool, 1, vocabulary_map)
    sequence = other.open([[0], [0]])
    compute(other, pool, 0, sequence, seed=5)
    with pytest.raises(ValueError, match="different tokens at position 0"):
        other.cast_copy(0, 1, sequence)


def test_a_map_that_agrees_is_accepted() -> None:
    pool = gr.PagePool([layout("float32"), layout("bfloat16")], 60 * 4096, 4096)
    cache = gr.KvCache(pool, 1, gr.VocabularyMap([[b"a", b"b"], [b"a", b"b", b"ab"]], []))
    sequence = cache.open([[0], [0]])
    cache.append(1, sequence, [1, 0])
    compute(cache, pool, 0, sequence, seed=6)
    assert cache.cast_copy(0, 1, sequence) == 3


@pytest.mark.parametrize(("source", "target"), [(0, 3), (-1, 0)])
def test_another_model_is_refused(source: int, target: int) -> None:
    pool = gr.PagePool([layout(name) for name in NAMES], 60 * 4096, 4096)
    cache = gr.KvCache(pool, 1)
    with pytest.raises(ValueError, match=r"model must lie in \[0, 3\)"):
        cache.cast_copy(source, target, cache.open([[5]] * 3))
