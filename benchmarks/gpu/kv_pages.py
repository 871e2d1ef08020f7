"""Keys and values in pages on a device: bandwidths of what a forward pass does with them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from clock import Clock

import glimprouter as gr
from glimprouter import kv

# One layer of Qwen3-4B, and a toy for smoke tests: query heads, KV heads, head size.
SHAPES = {"4B": (32, 8, 128), "toy": (4, 2, 32)}
PAGE_SIZE = 16
# Attention in a graph goes through so many bytes before it comes back to the same ones, as a model
# does: more than a second-level cache holds. But not through more layers than this.
TURN_BYTES, MOST_LAYERS = 200 << 20, 40
LOADS = ("direct", "staged")
# Of the bandwidth of reading, that the project wants of attention from so many tokens on.
GOAL_FRACTION, GOAL_CONTEXT = 0.6, 4096


def goal_of(context: int, fraction: float) -> dict[str, Any]:
    """The goal of a context, and whether a share of the bandwidth meets it; None for short ones."""
    goal = GOAL_FRACTION if context >= GOAL_CONTEXT else None
    met = None if goal is None else fraction >= goal
    return {"goal_fraction_of_read": goal, "met": met}


class Layers:
    """A pool on the device with some sequences of one or several layers in it, all alike."""

    def __init__(self, clock: Clock, shape: str, context: int, sequences: int, layers: int = 1):
        self.heads, self.kv_heads, self.size = SHAPES[shape]
        self.device = clock.device
        layout = gr.KvLayout(
            num_layers=layers,
            num_kv_heads=self.kv_heads,
            head_dim=self.size,
            page_size=PAGE_SIZE,
            dtype="bfloat16",
        )
        pages = sequences * (2 * context // PAGE_SIZE + 8)
        where = str(clock.device) if clock.is_cuda else "cpu"
        self.pool = gr.PagePool([layout], pages * layout.page_bytes, device=where)
        self.layers = layers
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
        for layer in range(self.layers):
            gr.append_kv(self.pool, layer, batch, keys, values)
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
    layer = Layers(clock, shape, context, 1)
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
    clock: Clock, shape: str, context: int, sequences: int, bandwidth: float, reading: float
) -> list[dict[str, Any]]:
    """Both ways of loading: ``us`` a call in a graph, its share of the bandwidth of reading."""
    heads, kv_heads, size = SHAPES[shape]
    read = 2 * sequences * context * kv_heads * size * 2
    layers = min(MOST_LAYERS, -(-TURN_BYTES // read))
    layer = Layers(clock, shape, context - 1, sequences, layers if clock.is_cuda else 2)
    for sequence in layer.cache.sequences:
        layer.cache.append(0, sequence, [0])
    batch = layer.cache.prepare(0, layer.cache.sequences)
    keys, values = layer.random(sequences, kv_heads), layer.random(sequences, kv_heads)
    for index in range(layer.layers):
        gr.append_kv(layer.pool, index, batch, keys, values)
    queries = layer.random(sequences, heads)
    out = torch.empty_like(queries)
    turn = itertools.cycle(range(layer.layers))

    def ours() -> None:
        gr.paged_attention(layer.pool, next(turn), batch, queries, out, scale=size**-0.5)

    contiguous = [
        torch.randn((sequences, kv_heads, context, size), device=layer.device, dtype=torch.bfloat16)
        for _ in range(2)
    ]
    query = queries.view(sequences, heads, 1, size)

    def torch_attention() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, *contiguous, enable_gqa=True)

    theirs = clock.events(torch_attention)
    rows, results = [], []
    before = kv.set_attention_loads(LOADS[0])
    try:
        for loads in LOADS:
            kv.set_attention_loads(loads)
            events = clock.events(ours)
            microseconds = clock.replay(ours, copies=max(layer.layers, 4))
            line = _line(
                "attention", read, microseconds, bandwidth, context=context, sequences=sequences
            )
            share = read / (1e-6 * microseconds) / reading
            own = {"loads": loads, "fraction_of_read": share, "events_us": events}
            rows.append(line | own | {"torch_us": theirs} | goal_of(context, share))
            gr.paged_attention(layer.pool, 0, batch, queries, out, scale=size**-0.5)
            results.append(out.clone())
    finally:
        kv.set_attention_loads(before)
    layer.cache.complete(batch)
    if not all(torch.equal(result, results[0]) for result in results):
        raise RuntimeError("attention gives other bits with other loads")
    return rows


def _hand_off(clock: Clock, shape: str, context: int, unseen: int) -> dict[str, Any]:
    """What catching up by some tokens costs beside the model: packing, and one layer's pages."""
    layer = Layers(clock, shape, context, 1)
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
    """Transfers, attention (by each way of loading, whose bits are compared) and hand-off.

    Args:
        clock: Of the device.
        shape: Key of `SHAPES`.
        contexts: Tokens of a sequence.
        batches: Sequences that decode at the same time.
    """
    bandwidth, reading = clock.copy_bandwidth(), clock.read_bandwidth()
    rows = []
    for context in contexts:
        rows += _transfers(clock, shape, context, bandwidth)
        for batch in batches:
            rows += _attention(clock, shape, context, batch, bandwidth, reading)
    return {
        "copy_bytes_per_second": bandwidth,
        "read_bytes_per_second": reading,
        "rows": rows,
        "hand_off": [_hand_off(clock, shape, contexts[-1], k) for k in (1, 8, 64)],
    }
