"""Attention over pages against float64, and its promises: any cut, batch and instruction set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import glimprouter as gr
from reference.containers import bits

Float32Array = NDArray[np.float32]
TYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


@dataclass
class Case:
    """One sequence of one model: random keys, values and queries of the last tokens."""

    head_dim: int = 64
    length: int = 40
    kv_heads: int = 2
    group: int = 2
    page_size: int = 16
    dtype: str = "float32"
    window: int = 0
    softcap: float = 0.0
    sinks: tuple[float, ...] = ()  # of the heads, again and again
    queries: int = 1
    seed: int = 0

    def _random(self, heads: int, stream: int, scale: float = 1.0) -> Any:
        generator = np.random.default_rng((self.seed, stream))
        values = scale * generator.standard_normal((self.length, heads, self.head_dim))
        return values.astype(TYPES[self.dtype])

    @cached_property
    def q(self) -> Any:
        return self._random(self.kv_heads * self.group, 0)

    @cached_property
    def k(self) -> Any:
        return self._random(self.kv_heads, 1, scale=2.0)

    @cached_property
    def v(self) -> Any:
        return self._random(self.kv_heads, 2)

    @cached_property
    def sink_scores(self) -> Any:
        scores = np.resize(np.float32(self.sinks), self.kv_heads * self.group)
        return scores.astype(TYPES[self.dtype]) if self.sinks else None

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def layout(self) -> gr.KvLayout:
        return gr.KvLayout(
            num_layers=2,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            page_size=self.page_size,
            dtype=self.dtype,
        )

    def expected(self) -> NDArray[np.float64]:
        """Float64 on the same values, for the last `queries` tokens."""
        keys, values = (
            np.repeat(x.astype(np.float64), self.group, axis=1) for x in (self.k, self.v)
        )
        out = []
        for position in range(self.length - self.queries, self.length):
            first = max(0, position + 1 - self.window) if self.window else 0
            query = self.q[position].astype(np.float64)
            scores = np.einsum("hd,thd->ht", query, keys[first : position + 1]) * self.scale
            if self.softcap:
                scores = self.softcap * np.tanh(scores / self.softcap)
            if self.sinks:
                sinks = self.sink_scores.astype(np.float64)[:, None]
                scores = np.concatenate([scores, sinks], axis=1)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            seen = values[first : position + 1]
            out.append(np.einsum("ht,thd->hd", weights[:, : len(seen)], seen))
        return np.stack(out)


class Pages:
    """A cache that has computed the case's tokens in pieces; layer 1 of the pages is used."""

    def __init__(self, cases: list[Case], interleave: bool = False) -> None:
        self.cases = cases
        layout = cases[0].layout()
        tokens = sum(case.length for case in cases)
        pages = tokens // layout.page_size + 4 * len(cases)
        self.pool = gr.PagePool([layout], (pages + 2) * layout.page_bytes, layout.page_bytes)
        self.pool.memory[:] = 0xFF  # NaN: what was not written must not be read
        self.cache = gr.KvCache(self.pool, len(cases))
        self.rows = [self.cache.open([[0]]) for _ in cases]
        if interleave:  # one token of each sequence in turn, so that pages are scattered
            for turn in range(max(case.length - case.queries for case in cases) - 1):
                for row, case in zip(self.rows, cases, strict=True):
                    if turn < case.length - case.queries - 1:
                        self.cache.append(0, row, [0])
                        self.advance([row])

    def advance(self, rows: list[int]) -> gr.RaggedBatch:
        """Computes whatever is behind; returns the batch after its keys were written."""
        batch = self.cache.prepare(0, rows)
        order = [self.rows.index(row) for row in rows]
        ends = batch.cu_seqlens.tolist()
        picked = [
            (self.cases[i], batch.positions[start:end])
            for i, start, end in zip(order, ends[:-1], ends[1:], strict=True)
        ]
        keys = np.concatenate([case.k[positions] for case, positions in picked])
        values = np.concatenate([case.v[positions] for case, positions in picked])
        self.q = np.concatenate([case.q[positions] for case, positions in picked])
        gr.append_kv(self.pool, 1, batch, keys, values)
        self.cache.complete(batch)
        return batch

    def attend(self, rows: list[int], counts: list[int]) -> Float32Array:
        """Appends `counts` tokens to the sequences and attends from them."""
        for row, count in zip(rows, counts, strict=True):
            self.cache.append(0, row, [0] * count)
        batch = self.advance(rows)
        case = self.cases[self.rows.index(rows[0])]
        out = np.full(
            (len(batch.ids), case.kv_heads * case.group, case.head_dim), np.nan, np.float32
        )
        gr.paged_attention(
            self.pool,
            1,
            batch,
            self.q,
            out,
            scale=case.scale,
            window=case.window,
            softcap=case.softcap,
            sinks=case.sink_scores,
        )
        return out


def attended(case: Case) -> Float32Array:
    """The case's attention: everything but the queries was computed before."""
    pages = Pages([case], interleave=case.length < 100)
    before = case.length - case.queries
    done = pages.cache.num_computed_tokens(0, pages.rows[0])
    if done < before:  # in one prefill
        pages.cache.append(0, pages.rows[0], [0] * (before - 1))
        pages.advance(pages.rows)
        done = before
    missing = case.length - done - (1 if done == 0 else 0)
    return pages.attend(pages.rows, [missing])[-case.queries :]


SINKS = (0.25, 30.0, -3.0, -120.0, -np.inf, 4.0, 90.0, 2.0)
HEAD_SIZES = [32, 64, 96, 128, 256]
CASES = {
    **{f"size_{size}": Case(head_dim=size) for size in HEAD_SIZES},
    **{f"size_{size}_bf16": Case(head_dim=size, dtype="bfloat16") for size in HEAD_SIZES},
    **{f"length_{length}": Case(length=length) for length in (1, 2, 15, 16, 17, 31, 32, 33, 1000)},
    # Pages end at 16, chunks of the context at 128; every head size at length, and with windows.
    **{
        f"size_{size}_length_{length}_window_{window}": Case(
            head_dim=size, length=length, window=window, dtype=dtype, seed=size + length
        )
        for size, dtype in zip(HEAD_SIZES, [*TYPES, "bfloat16", "float32"], strict=True)
        for length, window in (
            *((length, 0) for length in (127, 128, 129, 255, 256, 257, 4999, 5000)),
            *((5000, window) for window in (1, 255, 256, 257, 4096)),
        )
    },
    **{f"window_{w}": Case(length=70, window=w) for w in (1, 2, 15, 16, 17, 69, 70, 71)},
    **{f"page_{tokens}": Case(page_size=tokens, length=50) for tokens in (1, 4, 8, 64, 128)},
    **{f"group_{group}": Case(group=group, queries=3) for group in (1, 3, 5, 8, 40)},
    "fp16": Case(dtype="float16", queries=4),
    "softcap": Case(softcap=5.0, queries=7),
    "softcap_window": Case(softcap=2.0, window=9, queries=20, length=60),
    # Above the scores of all keys, among them, far below, absent; also with one key, and capped.
    **{
        f"sinks_{length}_{queries}_{dtype}": Case(
            length=length, queries=queries, dtype=dtype, group=4, sinks=SINKS, seed=length
        )
        for length, queries in ((1, 1), (40, 1), (40, 40), (129, 5), (300, 1), (300, 60))
        for dtype in TYPES
    },
    "sinks_window_softcap": Case(sinks=SINKS, softcap=2.0, window=9, queries=20, length=60),
    "prefill": Case(queries=40, length=40),
    "late_prefill": Case(queries=90, length=250, head_dim=32, group=4),
    "windowed_prefill": Case(queries=120, length=120, window=20),
}


@pytest.mark.parametrize("name", CASES)
def test_against_float64(name: str) -> None:
    case = replace(CASES[name])  # its values live as long as the test
    np.testing.assert_allclose(attended(case), case.expected(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_output_is_the_rounded_one(dtype: str) -> None:
    case = Case(queries=5, dtype=dtype, seed=3)
    pages = Pages([case])
    out = pages.attend(pages.rows, [case.length - 1])
    batch_pages = Pages([case])
    batch_pages.cache.append(0, batch_pages.rows[0], [0] * (case.length - 1))
    batch = batch_pages.advance(batch_pages.rows)
    narrow = np.zeros(out.shape, TYPES[dtype])
    gr.paged_attention(batch_pages.pool, 1, batch, batch_pages.q, narrow, scale=case.scale)
    np.testing.assert_array_equal(bits(narrow), bits(out.astype(TYPES[dtype])))


@pytest.mark.parametrize("seed", range(6))
def test_however_a_prefill_is_cut(seed: int) -> None:
    """All tokens at once, in pieces, or one by one: the same bits for every token."""
    case = Case(length=75, window=30, group=3, head_dim=32, seed=seed)
    whole = Pages([case]).attend([0], [case.length - 1])
    generator = np.random.default_rng(seed)
    pages, parts, done = Pages([case]), [], 0
    while done < case.length:
        first = 1 if done == 0 else 0  # the prompt is computed with the first piece
        count = int(generator.integers(1, 12)) if seed else 1
        count = min(count, case.length - done - first)
        parts.append(pages.attend([0], [count]))
        done += count + first
    np.testing.assert_array_equal(bits(np.concatenate(parts)), bits(whole))


@pytest.mark.parametrize("threads", [1, 3])
def test_any_batch(threads: int) -> None:
    """A ragged batch gives each sequence the bits that it gets alone."""
    cases = [
        Case(length=n, queries=q, group=4, head_dim=32, seed=n)
        for n, q in ((5, 1), (33, 1), (90, 17), (64, 64), (17, 2), (600, 1))
    ]
    before = gr.get_num_threads()
    gr.set_num_threads(threads)
    try:
        pages = Pages(cases, interleave=True)
        together = pages.attend(
            pages.rows,
            [
                case.length
                - pages.cache.num_computed_tokens(0, row)
                - (1 if case.queries == case.length else 0)
                for row, case in zip(pages.rows, cases, strict=True)
            ],
        )
    finally:
        gr.set_num_threads(before)
    start = 0
    for case in cases:
        alone = Pages([case]).attend([0], [case.length - 1])[-case.queries :]
        np.testing.assert_array_equal(bits(together[start : start + case.queries]), bits(alone))
        start += case.queries


def golden_digest() -> str:
    """Of all cases, in the active instruction set."""
    digest = hashlib.sha256()
    for case in CASES.values():
        digest.update(bits(attended(case)).tobytes())
    return digest.hexdigest()


def test_every_instruction_set_gives_the_same_bits() -> None:
    program = "import test_paged_attention as t; print(t.golden_digest())"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    digests = {}
    for name in gr.build_info()["instruction_sets_supported"]:
        finished = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "GLIMPROUTER_ISA": name, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        digests[name] = finished.stdout.strip()
    assert len(digests) > 1
    assert set(digests.values()) == {golden_digest()}


@pytest.mark.parametrize("dtype", TYPES)
def test_gathered_is_what_was_appended(dtype: str) -> None:
    """Also into another type: rounded as NumPy rounds."""
    case = Case(length=37, dtype=dtype, seed=5)
    pages = Pages([case], interleave=True)
    pages.attend(pages.rows, [1])
    for target in TYPES.values():
        keys, values = np.zeros(case.k.shape, target), np.zeros(case.v.shape, target)
        gr.gather_kv(pages.pool, 0, 1, pages.cache.pages(0, 0), keys, values)
        np.testing.assert_array_equal(bits(keys), bits(case.k.astype(np.float32).astype(target)))
        np.testing.assert_array_equal(bits(values), bits(case.v.astype(np.float32).astype(target)))


def test_rounding_of_every_half() -> None:
    """Ties, subnormals, overflow and NaN of the casts, through pages of the narrow types."""
    generator = np.random.default_rng(0)
    words = generator.integers(0, 1 << 32, 4096, dtype=np.uint64).astype(np.uint32)
    special = np.array(
        [
            0x477FEFFF,
            0x477FF000,
            0x33000000,
            0x33000001,
            0x387FFFFF,
            0x7FC00000,
            0x7F800000,
            0x3F808000,
            0x3F818000,
            0x80000000,
        ],
        np.uint32,
    )
    values = np.concatenate([words, special, np.zeros(54, np.uint32)]).view(np.float32)
    values = values.reshape(-1, 1, 64)
    for dtype in ("bfloat16", "float16"):
        layout = gr.KvLayout(num_layers=1, num_kv_heads=1, head_dim=64, page_size=16, dtype=dtype)
        pool = gr.PagePool([layout], 12 * layout.page_bytes)
        cache = gr.KvCache(pool, 1)
        cache.open([[0] * len(values)])
        gr.append_kv(pool, 0, cache.prepare(0, [0]), values, values)
        out = np.zeros(values.shape, TYPES[dtype])
        gr.gather_kv(pool, 0, 0, cache.pages(0, 0), out, out.copy())
        with np.errstate(over="ignore", invalid="ignore"):
            want = values.astype(TYPES[dtype])
        number = ~np.isnan(values)
        np.testing.assert_array_equal(out[number].view(np.uint16), want[number].view(np.uint16))
        assert np.isnan(out[~number].astype(np.float32)).all()


def test_nan_stays_in_its_sequence() -> None:
    good, bad = Case(seed=1), Case(seed=2)
    bad.v[7] = np.nan
    out = Pages([good, bad]).attend([0, 1], [39, 39])
    assert np.isfinite(out[:40]).all()
    assert np.isnan(out[40 + 7 :]).all()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "layer": ({"layer": 2}, ValueError, "layer must lie in"),
    "heads": ({"queries": np.zeros((40, 3, 64), np.float32)}, ValueError, "multiple of the 2 KV"),
    "tokens": ({"queries": np.zeros((39, 4, 64), np.float32)}, ValueError, "must have the shape"),
    "size": ({"queries": np.zeros((40, 4, 32), np.float32)}, ValueError, "must have the shape"),
    "type": ({"queries": np.zeros((40, 4, 64))}, TypeError, "float32, bfloat16 or float16"),
    "stride": ({"queries": np.zeros((40, 4, 128), np.float32)[..., ::2]}, ValueError, "contiguous"),
    "batch": ({"queries": np.zeros((2, 4, 40, 64), np.float32)}, ValueError, "batch of 1"),
    "out": ({"out": np.zeros((40, 2, 64), np.float32)}, ValueError, "out must have the shape"),
    "scale": ({"scale": float("nan")}, ValueError, "scale must be finite"),
    "window": ({"window": -1}, ValueError, "window must be"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap must be"),
    "few sinks": (
        {"sinks": np.zeros(2, np.float32)},
        ValueError,
        "each of the 4 query heads, got 2",
    ),
    "sinks": ({"sinks": np.zeros((4, 1), np.float32)}, ValueError, "sinks must be contiguous"),
    "no sinks": ({"sinks": np.zeros(0, np.float32)}, ValueError, "a score for each head"),
    "sink": ({"sinks": 0.5}, TypeError, "sinks"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name: str) -> None:
    changed, error, message = BAD[name]
    case = Case()
    pages = Pages([case])
    pages.cache.append(0, 0, [0] * 39)
    batch = pages.advance([0])
    arguments: dict[str, Any] = {
        "pool": pages.pool,
        "layer": 1,
        "batch": batch,
        "queries": pages.q,
        "out": np.zeros((40, 4, 64), np.float32),
        "scale": case.scale,
        **changed,
    }
    with pytest.raises(error, match=message):
        gr.paged_attention(**arguments)
