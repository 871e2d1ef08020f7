"""The same values give the same bits: batch, order, split, stride, alignment, type, threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import glimprouter as gr
from reference.containers import DlpackOnly, as_numpy, bits, unaligned_copy
from reference.rows import hostile_rows, normal_rows, peaked_rows

pytestmark = pytest.mark.emulator

FIELDS = ("entropy", "logsumexp", "max_prob", "margin", "token", "status", "varentropy")
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
)
VOCABULARIES = (1, 7, 302, 2049, 5001)


def batch_of(vocabulary: int) -> NDArray[np.float32]:
    """Returns rows [B, vocabulary] of every kind that the tests know, bad rows included."""
    bad = normal_rows(3, vocabulary, 77)
    bad[0, vocabulary // 2], bad[1, 0], bad[2, :] = np.nan, np.inf, -np.inf
    hostile = np.stack(list(hostile_rows(vocabulary, 71).values()))
    ordinary = [normal_rows(6, vocabulary, 72), peaked_rows(6, vocabulary, 73)]
    return np.concatenate([*ordinary, hostile, bad])


def outputs(logits: Any, streams: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Returns every statistic and the sampled tokens of several modes, one array [B] each."""
    glimpse = gr.glimpse(logits, varentropy=True)
    top_20 = gr.glimpse(logits, entropy_top_k=20)
    results = [as_numpy(getattr(glimpse, field)) for field in FIELDS] + [as_numpy(top_20.entropy)]
    for mode in SAMPLING:
        results.append(as_numpy(gr.sample(logits, seed=3, substream=streams, position=11, **mode)))
    return results


def assert_same_bits(got: list[NDArray[Any]], want: list[NDArray[Any]], label: str) -> None:
    for index, (left, right) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_array_equal(bits(left), bits(right), err_msg=f"{label}: output {index}")


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_any_order_of_the_rows(vocabulary: int) -> None:
    rows = batch_of(vocabulary)
    streams = np.arange(len(rows))
    want = outputs(rows, streams)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        got = outputs(rows[order], streams[order])
        assert_same_bits(got, [values[order] for values in want], f"order {seed}")


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("sizes", [(1,), (2, 3), (5, 1, 7)])
def test_any_split_of_the_batch(vocabulary: int, sizes: tuple[int, ...]) -> None:
    rows = batch_of(vocabulary)
    streams = np.arange(len(rows))
    parts: list[list[NDArray[Any]]] = []
    start, turn = 0, 0
    while start < len(rows):
        stop = start + sizes[turn % len(sizes)]
        parts.append(outputs(rows[start:stop], streams[start:stop]))
        start, turn = stop, turn + 1
    got = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    assert_same_bits(got, outputs(rows, streams), f"split {sizes}")


def layouts(rows: NDArray[np.float32]) -> Iterator[tuple[str, Any]]:
    """Yields the same rows in other memory layouts and containers."""
    count, vocabulary = rows.shape
    for extra in (1, 3, 13, 64):
        wide = np.full((count, vocabulary + extra), np.nan, np.float32)
        wide[:, :vocabulary] = rows
        yield f"row stride + {extra}", wide[:, :vocabulary]
        wide = np.full((count, vocabulary + extra), np.nan, np.float32)
        wide[:, extra:] = rows
        yield f"column offset {extra}", wide[:, extra:]
        yield f"torch column offset {extra}", torch.from_numpy(wide)[:, extra:]
    spread = np.full((2 * count, vocabulary), np.nan, np.float32)
    spread[::2] = rows
    yield "every second row", spread[::2]
    yield "torch every second row", torch.from_numpy(spread)[::2]
    yield "backwards", rows[::-1].copy()[::-1]
    yield "odd address", unaligned_copy(rows)
    yield "three dimensional slice", np.stack([rows, np.zeros_like(rows)], axis=1)[:, 0]
    yield "read only", np.frombuffer(rows.tobytes(), np.float32).reshape(rows.shape)
    yield "torch", torch.from_numpy(rows)
    yield "torch requiring grad", torch.from_numpy(rows.copy()).requires_grad_()
    yield "dlpack only", DlpackOnly(rows)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_any_stride_alignment_and_container(vocabulary: int) -> None:
    rows = batch_of(vocabulary)
    streams = np.arange(len(rows))
    want = outputs(rows, streams)
    for name, view in layouts(rows):
        assert_same_bits(outputs(view, streams), want, name)


@pytest.mark.parametrize("vocabulary", [302, 5001])
@pytest.mark.parametrize("offset", [1, 2, 3, 5, 31])
def test_a_buffer_at_any_byte_offset(vocabulary: int, offset: int) -> None:
    rows = batch_of(vocabulary)
    streams = np.arange(len(rows))
    raw = b"\xff" * offset + rows.tobytes()
    view = np.frombuffer(raw, np.float32, offset=offset).reshape(rows.shape)
    assert_same_bits(outputs(view, streams), outputs(rows, streams), f"offset {offset}")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_carrying_type_does_not_matter(vocabulary: int, dtype: Any) -> None:
    """A bf16 (fp16) row and its fp32 copy agree in every bit; so does an unaligned bf16 row."""
    with np.errstate(over="ignore"):
        narrow = batch_of(vocabulary).astype(dtype)
    streams = np.arange(len(narrow))
    want = outputs(narrow.astype(np.float32), streams)
    assert_same_bits(outputs(narrow, streams), want, "aligned")
    assert_same_bits(outputs(unaligned_copy(narrow), streams), want, "unaligned")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_carrying_type_of_torch_does_not_matter(dtype: torch.dtype) -> None:
    narrow = torch.from_numpy(batch_of(5001)).to(dtype)
    streams = np.arange(len(narrow))
    assert_same_bits(outputs(narrow, streams), outputs(narrow.float(), streams), str(dtype))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("padding", [1, 10, 2048, 6000])
def test_padding_by_masked_logits_changes_nothing(vocabulary: int, padding: int) -> None:
    rows = batch_of(vocabulary)
    streams = np.arange(len(rows))
    padded = np.concatenate([rows, np.full((len(rows), padding), -np.inf, np.float32)], axis=1)
    assert_same_bits(outputs(padded, streams), outputs(rows, streams), f"padding {padding}")


@pytest.mark.parametrize("vocabulary", [302, 5001])
def test_flush_to_zero_in_the_calling_thread_changes_nothing(vocabulary: int) -> None:
    """torch.set_flush_denormal sets the processor's mode, which must not reach the arithmetic."""
    rows = batch_of(vocabulary)
    tiny = np.random.default_rng(5).integers(0, 1 << 23, (8, vocabulary)).astype(np.uint32)
    rows = np.concatenate([rows, tiny.view(np.float32), -tiny.view(np.float32)])
    streams = np.arange(len(rows))
    want = outputs(rows, streams)
    assert torch.set_flush_denormal(True)
    try:
        got = outputs(rows, streams)
        still_flushing = (torch.tensor([1e-40]) * 1.0).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(got, want, "flush to zero")
    assert still_flushing, "the caller's mode must come back unchanged"


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_any_number_of_threads(threads: int) -> None:
    rows = np.concatenate([batch_of(5001)] * 3)
    streams = np.arange(len(rows))
    assert gr.get_num_threads() == 1
    want = outputs(rows, streams)
    gr.set_num_threads(threads)
    try:
        assert gr.get_num_threads() == threads
        for _ in range(3):
            assert_same_bits(outputs(rows, streams), want, f"{threads} threads")
    finally:
        gr.set_num_threads(1)


def test_large_vocabularies_in_any_layout() -> None:
    rows = np.concatenate([normal_rows(2, 151_936, 81), peaked_rows(1, 151_936, 82)])
    rows[1, 1::3] = -np.inf
    streams = np.arange(len(rows))
    want = outputs(rows, streams)
    assert_same_bits(outputs(unaligned_copy(rows), streams), want, "unaligned")
    assert_same_bits(outputs(torch.from_numpy(rows), streams), want, "torch")
    single = [
        np.concatenate(c)
        for c in zip(*(outputs(rows[i : i + 1], streams[i : i + 1]) for i in range(3)), strict=True)
    ]
    assert_same_bits(single, want, "one row at a time")
