"""Page pools on every device of this build: the pages of one hold what the pages of another do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import device_pairs
import glimprouter as gr
from glimprouter import kv

pytestmark = pytest.mark.device

DEVICES = ["cpu", *device_pairs.DEVICES]
HEADS, KV_HEADS, SIZE, PAGE_SIZE = 4, 2, 32, 8


def torch_device(device: str) -> torch.device:
    """Where tensors of a device live; the simulated one works on host memory."""
    return torch.device("cpu" if device.startswith("simt") else device)


def layout_of(dtype: str) -> gr.KvLayout:
    """Two layers, in pages of a few tokens."""
    return gr.KvLayout(
        num_layers=2,
        num_kv_heads=KV_HEADS,
        head_dim=SIZE,
        page_size=PAGE_SIZE,
        dtype=dtype,
    )


class Run:
    """One sequence computed in two pieces, forked and written on, on one device."""

    def __init__(self, device: str, dtype: str) -> None:
        layout = layout_of(dtype)
        self.device = torch_device(device)
        self.pool = gr.PagePool([layout], 128 * layout.page_bytes, layout.page_bytes, device)
        self.cache = gr.KvCache(self.pool, 3)
        self.generator = torch.Generator().manual_seed(5)
        self.outputs: list[torch.Tensor] = []
        self.sinks = [None, torch.linspace(-1, 2, HEADS).to(self.device)]

    def random(self, tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, SIZE, generator=self.generator).to(self.device)

    def advance(self, rows: list[int]) -> None:
        batch = self.cache.prepare(0, rows)
        tokens = len(batch.ids)
        for layer in range(2):
            keys, values = self.random(tokens, KV_HEADS), self.random(tokens, KV_HEADS)
            gr.append_kv(self.pool, layer, batch, keys, values)
            queries = self.random(tokens, HEADS)
            out = torch.empty_like(queries)
            options: dict[str, Any] = {
                "scale": 0.2,
                "window": 20 * layer,
                "softcap": 3.0,
                "sinks": self.sinks[layer],
            }
            gr.paged_attention(self.pool, layer, batch, queries, out, **options)
            self.outputs.append(out.cpu())
        self.cache.complete(batch)

    def play(self) -> list[torch.Tensor]:
        first = self.cache.open([list(range(300))])
        self.advance([first])
        second = self.cache.fork(first)
        self.cache.append(0, first, [1, 2])
        self.cache.append(0, second, [3, 4, 5])
        self.advance([first, second])
        saved = self.cache.save(first)
        self.cache.close(first)
        first = self.cache.load(saved)
        self.cache.append(0, first, [6])
        self.advance([first])
        keys, values = (torch.empty(303, KV_HEADS, SIZE, device=self.device) for _ in range(2))
        pages = self.cache.pages(0, first)
        gr.gather_kv(self.pool, 0, 1, pages, keys, values)
        return [*self.outputs, keys.cpu(), values.cpu()]


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_device_gives_the_bits_of_the_cpu(device: str, dtype: str) -> None:
    run = Run(device, dtype)
    assert run.pool.device == device
    for result, expected in zip(run.play(), Run("cpu", dtype).play(), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_elsewhere_are_refused(device: str) -> None:
    run = Run(device, "float32")
    run.cache.open([[1, 2, 3]])
    batch = run.cache.prepare(0, [0])
    elsewhere = torch.empty(3, KV_HEADS, SIZE, device="meta")
    with pytest.raises((TypeError, ValueError)):
        gr.append_kv(run.pool, 0, batch, elsewhere, elsewhere)


@pytest.mark.parametrize("device", DEVICES)
def test_all_layers_at_once_are_the_layers_one_by_one(device: str) -> None:
    run = Run(device, "bfloat16")
    first = run.cache.open([list(range(20))])
    batch = run.cache.prepare(0, [first])
    stacked = torch.stack([run.random(20, KV_HEADS).cpu() for _ in range(4)]).to(run.device)
    keys, values = stacked[::2], stacked[1::2]
    kv.stage_batch(run.pool, batch, HEADS, stacked)
    kv.append_kv_layers(run.pool, batch, keys, values)
    run.cache.complete(batch)
    pages = run.cache.pages(0, first)
    got = [torch.empty(2, 20, KV_HEADS, SIZE, device=run.device) for _ in range(2)]
    kv.gather_kv_layers(run.pool, 0, pages, *got)
    for layer in range(2):
        one = [torch.empty(20, KV_HEADS, SIZE, device=run.device) for _ in range(2)]
        gr.gather_kv(run.pool, 0, layer, pages, *one)
        for all_layers, single, source in zip(got, one, (keys, values), strict=True):
            assert torch.equal(all_layers[layer], single)
            assert torch.equal(single, source[layer].bfloat16().float())
    with pytest.raises(ValueError, match="2 layers"):
        kv.append_kv_layers(run.pool, batch, keys[0], values[0])
    with pytest.raises(ValueError, match="pages, got 1"):
        kv.gather_kv_layers(run.pool, 0, pages[:1], *got)


def test_unknown_device_is_refused() -> None:
    layout = layout_of("float32")
    with pytest.raises(ValueError, match="this build has"):
        gr.PagePool([layout], 128 * layout.page_bytes, device="toaster:0")
