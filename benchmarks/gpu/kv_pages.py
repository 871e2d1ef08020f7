"""Keys and values in pages on a device: bandwidths of what a forward pass does with them."""

from __future__ import annotations

from typing import Any

import torch
from clock import Clock

import glimprouter as gr

# One layer of Qwen3-4B, and a toy for smoke tests: query heads, KV heads, head size.
SHAPES = {"4B": (32, 8, 128), "toy": (4, 2, 32)}
PAGE_SIZE = 16


class OneLayer:
    """A pool on the device with some sequences of one layer in it."""

    def __init__(self, clock: Clock, shape: str, context: int, sequences: int):
        self.heads, self.kv_heads, self.size = SHAPES[shape]
        self.device = clock.device
        layout = gr.KvLayout(
            num_layers=1,
            num_kv_heads=self.kv_heads,
            head_dim=self.size,
            page_size=PAGE_SIZE,
            dtype="bfloat16",
        )
        pages = sequences * (2 * context // PAGE_SIZE + 8)
        where = str(clock.device) if clock.is_cuda else "cpu"
        self.pool = gr.PagePool([layout], pages * layout.page_bytes, device=where)
        self.cache = gr.KvCache(self.pool, sequences)
        for _ in range(sequences):
            self.cache.open([[0] * context])
        self.fill()

    def random(self, tokens: int, heads: int) -> torch.Tensor:
        """``[tokens, heads, size]`` in bfloat16 on the device."""
        shape = (tokens, heads, self.size)
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def fill(self) -> None:
        """Computes everything that is not in the pages yet."""
        batch = self.cache.prepare(0, self.cache.sequences)
        tokens = len(batch.ids)
        keys, values = self.random(tokens, self.kv_heads), self.random(tokens, self.kv_heads)
        gr.append_kv(self.pool, 0, batch, keys, values)
        self.cache.complete(batch)


def _line(
    name: str, bytes_moved: int, microseconds: float, bandwidth: float, **more: Any
) -> dict[str, Any]:
    rate = bytes_moved / (1e-6 * microseconds)
    return {
        "name": name,
        **more,
        "bytes": bytes_moved,
        "us": microseconds,
        "gigabytes_per_second": rate / 1e9,
        "fraction_of_copy": rate / bandwidth,
    }


def _transfers(clock: Clock, shape: str, context: int, bandwidth: float) -> list[dict[str, Any]]:
    layer = OneLayer(clock, shape, context, 1)
    layer.cache.close(0)
    layer.cache.open([[0] * context])
    keys, values = layer.random(context, layer.kv_heads), layer.random(context, layer.kv_heads)
    payload = 2 * 2 * keys.numel() * keys.element_size()  # K and V, read and written
    batch = layer.cache.prepare(0, [0])
    append = clock.events(lambda: gr.append_kv(layer.pool, 0, batch, keys, values))
    layer.cache.complete(batch)
    pages = layer.cache.pages(0, 0)
    gather = clock.events(lambda: gr.gather_kv(layer.pool, 0, 0, pages, keys, values))
    return [
        _line("append", payload, append, bandwidth, context=context),
        _line("gather", payload, gather, bandwidth, context=context),
    ]


def _attention(
    clock: Clock, shape: str, context: int, sequences: int, bandwidth: float
) -> dict[str, Any]:
    layer = OneLayer(clock, shape, context - 1, sequences)
    for sequence in layer.cache.sequences:
        layer.cache.append(0, sequence, [0])
    batch = layer.cache.prepare(0, layer.cache.sequences)
    keys, values = layer.random(sequences, layer.kv_heads), layer.random(sequences, layer.kv_heads)
    gr.append_kv(layer.pool, 0, batch, keys, values)
    queries = layer.random(sequences, layer.heads)
    out = torch.empty_like(queries)

    def ours() -> None:
        gr.paged_attention(layer.pool, 0, batch, queries, out, scale=layer.size**-0.5)

    contiguous = [
        torch.randn(
            (sequences, layer.kv_heads, context, layer.size),
            device=layer.device,
            dtype=torch.bfloat16,
        )
        for _ in range(2)
    ]
    query = queries.view(sequences, layer.heads, 1, layer.size)

    def torch_attention() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, *contiguous, enable_gqa=True)

    read = 2 * sequences * context * layer.kv_heads * layer.size * 2
    microseconds = clock.events(ours)
    layer.cache.complete(batch)
    return _line(
        "attention",
        read,
        microseconds,
        bandwidth,
        context=context,
        sequences=sequences,
        torch_us=clock.events(torch_attention),
    )


def _hand_off(clock: Clock, shape: str, context: int, unseen: int) -> dict[str, Any]:
    """What catching up by some tokens costs beside the model: packing, and one layer's pages."""
    layer = OneLayer(clock, shape, context, 1)
    keys, values = layer.random(unseen, layer.kv_heads), layer.random(unseen, layer.kv_heads)
    queries = layer.random(unseen, layer.heads)
    out = torch.empty_like(queries)
    ids = [0] * unseen
    computed = []

    def call() -> None:
        layer.cache.append(0, 0, ids)
        batch = layer.cache.prepare(0, [0])
        computed.append(len(batch.ids))
        gr.append_kv(layer.pool, 0, batch, keys, values)
        gr.paged_attention(layer.pool, 0, batch, queries, out, scale=layer.size**-0.5)
        layer.cache.complete(batch)
        layer.cache.truncate(0, 0)

    microseconds = clock.events(call)
    return {
        "context": context,
        "unseen": unseen,
        "us": microseconds,
        "tokens_computed_a_call": sum(computed) / len(computed),
    }


def run(clock: Clock, shape: str, contexts: tuple[int, ...], batches: tuple[int, ...]) -> Any:
    """Transfers, attention and hand-off of one layer.

    Args:
        clock: Of the device.
        shape: Key of `SHAPES`.
        contexts: Tokens of a sequence.
        batches: Sequences that decode at the same time.
    """
    bandwidth = clock.copy_bandwidth()
    rows = []
    for context in contexts:
        rows += _transfers(clock, shape, context, bandwidth)
        rows += [_attention(clock, shape, context, batch, bandwidth) for batch in batches]
    return {
        "copy_bytes_per_second": bandwidth,
        "rows": rows,
        "hand_off": [_hand_off(clock, shape, contexts[-1], k) for k in (1, 8, 64)],
    }
