"""Layouts as lists of layers: each its own heads, sizes of keys and values, and what it shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import glimprouter as gr

TYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
GROUP = 2  # query heads of a KV head


@st.composite
def layer_lists(draw: st.DrawFn) -> list[gr.LayerShape]:
    """One to six layers; some share an earlier one, some keep their values within their keys."""
    layers: list[gr.LayerShape] = []
    for _ in range(draw(st.integers(1, 6))):
        owners = [index for index, layer in enumerate(layers) if layer.shares is None]
        if owners and draw(st.booleans()):
            index = draw(st.sampled_from(owners))
            own = layers[index]
            layers.append(
                gr.LayerShape(
                    num_kv_heads=own.num_kv_heads,
                    head_dim=own.head_dim,
                    value_dim=own.value_dim,
                    latent=own.latent,
                    shares=index,
                )
            )
            continue
        latent = draw(st.booleans())
        head_dim = draw(st.sampled_from([16, 32, 80]))
        widths = [width for width in (16, 32, 48, 96) if not latent or width <= head_dim]
        layers.append(
            gr.LayerShape(
                num_kv_heads=draw(st.integers(1, 3)),
                head_dim=head_dim,
                value_dim=draw(st.sampled_from(widths)),
                latent=latent,
            )
        )
    return layers


@dataclass
class Model:
    """What the pages should hold: keys and values of each layer that has its own, as float64."""

    layers: list[gr.LayerShape]
    dtype: str
    generator: np.random.Generator
    keys: dict[tuple[int, int], NDArray[Any]]  # (sequence, layer)
    values: dict[tuple[int, int], NDArray[Any]]

    def random(self, tokens: int, heads: int, size: int) -> NDArray[Any]:
        return self.generator.standard_normal((tokens, heads, size)).astype(TYPES[self.dtype])

    def extend(self, sequence: int, layer: int, tokens: int) -> tuple[Any, Any]:
        """New tokens of one layer; None for values that lie within the keys."""
        shape = self.layers[layer]
        keys = self.random(tokens, shape.num_kv_heads, shape.head_dim)
        own = self.random(tokens, shape.num_kv_heads, shape.value_dim)
        values = keys[..., : shape.value_dim] if shape.latent else own
        for held, new in ((self.keys, keys), (self.values, values)):
            before = held.get((sequence, layer), new[:0])
            held[sequence, layer] = np.concatenate([before, new])
        return keys, None if shape.latent else values

    def attended(self, sequence: int, layer: int, query: NDArray[Any]) -> NDArray[np.float64]:
        """The last tokens' ``[tokens, heads, value size]``, in float64."""
        owner = layer if self.layers[layer].shares is None else self.layers[layer].shares
        keys, values = (
            np.repeat(held[sequence, owner].astype(np.float64), GROUP, axis=1)
            for held in (self.keys, self.values)
        )
        scores = np.einsum("qhd,thd->hqt", query.astype(np.float64), keys) * 0.2
        count, length = len(query), len(keys)
        future = np.arange(length)[None] > np.arange(length - count, length)[:, None]
        scores[:, future] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hqt,thd->qhd", weights, values)


def close(got: NDArray[Any], want: NDArray[np.float64], dtype: str) -> None:
    bound = {"float32": 1e-5, "bfloat16": 2.0**-7, "float16": 2.0**-9}[dtype]
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=bound)


@settings(deadline=None, max_examples=60)
@given(
    layers=layer_lists(),
    dtype=st.sampled_from(list(TYPES)),
    page_size=st.sampled_from([1, 5, 16]),
    pieces=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 3)), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_layers_of_any_shapes_side_by_side(
    layers: list[gr.LayerShape],
    dtype: str,
    page_size: int,
    pieces: list[tuple[int, int]],
    seed: int,
) -> None:
    """Two sequences grow by turns; every layer reads what it, or the one it shares, has written."""
    layout = gr.KvLayout(layers=layers, page_size=page_size, dtype=dtype)  # type: ignore[arg-type]
    pool = gr.PagePool([layout], 300 * layout.page_bytes, layout.page_bytes)
    pool.memory[:] = 0xFF  # NaN: what was not written must not be read
    cache = gr.KvCache(pool, 2)
    model = Model(layers, dtype, np.random.default_rng(seed), {}, {})
    rows: list[int] = []
    for counts in pieces:
        if rows:
            for row, count in zip(rows, counts, strict=True):
                cache.append(0, row, [0] * count)
        else:
            rows = [cache.open([[0] * count]) for count in counts]
        batch = cache.prepare(0, rows)
        for index, shape in enumerate(layers):
            if shape.shares is None:
                made = [model.extend(row, index, n) for row, n in zip(rows, counts, strict=True)]
                keys, values = (
                    None if states[0] is None else np.concatenate(states)
                    for states in zip(*made, strict=True)
                )
                gr.append_kv(pool, index, batch, keys, values)
            heads = shape.num_kv_heads * GROUP
            query = model.random(sum(counts), heads, shape.head_dim)
            out = np.full((sum(counts), heads, shape.value_dim), np.nan, TYPES[dtype])
            gr.paged_attention(pool, index, batch, query, out, scale=0.2)
            parts = np.split(query, [counts[0]])
            want = [model.attended(row, index, part) for row, part in zip(rows, parts, strict=True)]
            close(out, np.concatenate(want), dtype)
        cache.complete(batch)
    for row in rows:
        for index, shape in enumerate(layers):
            owner = index if shape.shares is None else shape.shares
            want_keys, want_values = model.keys[row, owner], model.values[row, owner]
            keys, values = np.empty_like(want_keys), np.empty_like(want_values)
            gr.gather_kv(pool, 0, index, cache.pages(0, row), keys, values)
            np.testing.assert_array_equal(keys, want_keys)
            np.testing.assert_array_equal(values, want_values)
    other = gr.KvCache(gr.PagePool([layout], 300 * layout.page_bytes, layout.page_bytes), 2)
    saved = cache.save(rows[0])
    assert other.save(other.load(saved)) == saved


def gemma_like() -> gr.KvLayout:
    """Small heads, a large one, and two layers that share them."""
    small = {"num_kv_heads": 2, "head_dim": 16}
    large = {"num_kv_heads": 1, "head_dim": 32}
    layers = [
        gr.LayerShape(**small),
        gr.LayerShape(**large),
        gr.LayerShape(**small, shares=0),
        gr.LayerShape(**large, shares=1),
    ]
    return gr.KvLayout(layers=layers, page_size=4, dtype="float32")


def test_what_a_layer_shares_takes_no_memory() -> None:
    layout = gemma_like()
    assert layout.page_bytes == 4 * 4 * 2 * (2 * 16 + 32)
    assert layout.sharing == [2, 3]
    assert layout.layers[3].shares == 1
    assert layout.layers[0].shares is None
    for name in ("key_offset", "value_offset", "key_head_stride", "value_token_stride"):
        assert getattr(layout.layer(3), name) == getattr(layout.layer(1), name)


def test_latent_values_take_no_memory() -> None:
    layer = gr.LayerShape(num_kv_heads=1, head_dim=576, value_dim=512, latent=True)
    layout = gr.KvLayout(layers=[layer], page_size=4, dtype="bfloat16")
    assert layout.page_bytes == 4608  # 4 x 576 x 2, a multiple of 256
    assert layout.layer(0).value_offset == layout.layer(0).key_offset


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "needs a layer"),
        ([{"num_kv_heads": 0}], "num_kv_heads must be >= 1, got 0"),
        ([{"value_dim": 0}], "value_dim must be >= 1, got 0"),
        ([{"value_dim": 32, "latent": True}], "latent values of 32 elements, more than its keys"),
        ([{"shares": 0}], "layer 0 must share an earlier layer"),
        ([{}, {"shares": 1}], "layer 1 must share an earlier layer"),
        ([{}, {"shares": 0}, {"shares": 1}], "layer 2 must share an earlier layer"),
        ([{}, {"shares": 0, "head_dim": 32}], "heads and sizes of layer 0, which it shares"),
    ],
    ids=str,
)
def test_layers_that_make_no_sense(layers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gr.KvLayout(
            layers=[gr.LayerShape(**{"num_kv_heads": 1, "head_dim": 16, **own}) for own in layers],
            page_size=4,
            dtype="float32",
        )


def test_what_one_tensor_cannot_hold_is_refused() -> None:
    """Nothing is written then; layer by layer it goes."""
    pool = gr.PagePool([gemma_like()], 1 << 16)
    pool.memory[:] = 0
    cache = gr.KvCache(pool, 1)
    row = cache.open([[0] * 3])
    batch = cache.prepare(0, [row])
    states = np.ones((4, 3, 2, 16), np.float32)
    with pytest.raises(ValueError, match=r"go layer by layer: 1 layers x 2 heads x 16 \+ 1 layers"):
        gr.kv.append_kv_layers(pool, batch, states, states)
    with pytest.raises(ValueError, match="layer 2 has no keys of its own: it reads those of layer"):
        gr.append_kv(pool, 2, batch, states[0], states[0])
    with pytest.raises(ValueError, match=r"size\] = \[3, 2, 16\], got none"):
        gr.append_kv(pool, 0, batch, states[0], None)
    with pytest.raises(IndexError, match=r"\[0, 4\), got 4"):
        gemma_like().layer(4)
    assert not pool.memory.any()


def test_values_within_keys_are_not_given_twice() -> None:
    layer = gr.LayerShape(num_kv_heads=1, head_dim=32, value_dim=16, latent=True)
    pool = gr.PagePool([gr.KvLayout(layers=[layer], page_size=4, dtype="float32")], 1 << 16)
    cache = gr.KvCache(pool, 1)
    batch = cache.prepare(0, [cache.open([[0] * 3])])
    keys = np.ones((3, 1, 32), np.float32)
    with pytest.raises(ValueError, match="keeps its values within its keys; pass none"):
        gr.append_kv(pool, 0, batch, keys, keys[..., :16])


def test_a_saved_sequence_names_the_layer_that_differs() -> None:
    pool = gr.PagePool([gemma_like()], 1 << 16)
    cache = gr.KvCache(pool, 1)
    saved = cache.save(cache.open([[0] * 3]))
    layers = gemma_like().layers
    layers[3] = gr.LayerShape(num_kv_heads=1, head_dim=32)
    other = gr.KvLayout(layers=layers, page_size=4, dtype="float32")
    with pytest.raises(ValueError, match="what a layer shares differs"):
        gr.KvCache(gr.PagePool([other], 1 << 16), 1).load(saved)
