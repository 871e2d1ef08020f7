"""Attention whose keys and values are copied ahead of their use, on a GPU: the bits of the CPU.

The copies of the emulator arrive when they are waited for; only a GPU has those that arrive when
they like, and only compute-sanitizer (benchmarks/gpu_suite.sh) sees who reads them too early.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import glimprouter as gr
from glimprouter import kv

pytestmark = pytest.mark.gpu

CUDA = "cuda:0"


def attention_on(device: str, dtype: str, size: int, heads: int, spans: list[int]) -> torch.Tensor:
    """One new token a sequence, 2 KV heads, pages of 16 tokens; the same numbers on any device."""
    generator = torch.Generator().manual_seed(9)
    layout = gr.KvLayout(num_layers=1, num_kv_heads=2, head_dim=size, page_size=16, dtype=dtype)
    pages = sum(span // 16 + 2 for span in spans) + 4
    pool = gr.PagePool([layout], pages * layout.page_bytes, layout.page_bytes, device)
    cache = gr.KvCache(pool, len(spans))

    def random(tokens: int, count: int) -> torch.Tensor:
        return torch.randn(tokens, count, size, generator=generator).to(device)

    def append(batch: Any) -> None:
        tokens = len(batch.ids)
        gr.append_kv(pool, 0, batch, random(tokens, 2), random(tokens, 2))

    for span in spans:
        cache.open([[0] * (span - 1)])
    batch = cache.prepare(0, cache.sequences)
    append(batch)
    cache.complete(batch)
    for sequence in cache.sequences:
        cache.append(0, sequence, [0])
    batch = cache.prepare(0, cache.sequences)
    append(batch)
    queries = random(len(spans), heads)
    out = torch.empty_like(queries)
    gr.paged_attention(pool, 0, batch, queries, out, scale=size**-0.5)
    cache.complete(batch)
    return out.cpu()


@pytest.fixture(autouse=True)
def staged() -> Any:
    before = kv.set_attention_loads("staged")
    yield
    kv.set_attention_loads(before)


@pytest.mark.parametrize("heads", [8, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_bits_of_the_cpu_small_case(dtype: str, heads: int) -> None:
    """Blocks of four and of eight rows; one chunk, and several."""
    spans = [2, 31, 33, 128, 300]
    want, got = (attention_on(device, dtype, 128, heads, spans) for device in ("cpu", CUDA))
    assert torch.equal(got, want)


@pytest.mark.parametrize("size", [16, 64, 80, 96, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bits_of_the_cpu_for_long_contexts(dtype: str, size: int) -> None:
    spans = [5000, 129, 2, 700]
    want, got = (attention_on(device, dtype, size, 8, spans) for device in ("cpu", CUDA))
    for _ in range(5):  # whatever arrives first
        assert torch.equal(got, want)
        got = attention_on(CUDA, dtype, size, 8, spans)
