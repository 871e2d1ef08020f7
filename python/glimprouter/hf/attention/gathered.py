"""Attention of many new tokens on a device: gathered keys and values, and torch's own attention.

The kernel over pages is made for the few query tokens of decoding. A prompt is faster through
``scaled_dot_product_attention``, which has the tensor cores' kernels: each sequence's keys and
values are gathered out of its pages, as they are there, the batch's own included.
"""

from __future__ import annotations

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from glimprouter import _C
from glimprouter.kv import PagePool, RaggedBatch
from glimprouter.torch import AttentionOptions

MANY_TOKENS = 32  # new tokens of a sequence from which on gathering is taken


def gathers(pool: PagePool, batch: RaggedBatch, options: AttentionOptions) -> bool:
    """Whether a pass is attended by gathering: on a device, with long pieces, where torch can."""
    if pool.device == "cpu" or options.softcap != 0.0 or options.sinks is not None:
        return False
    starts = batch.cu_seqlens
    return bool((starts[1:] - starts[:-1]).max() >= MANY_TOKENS)


def gathered_attention(
    pool: PagePool,
    layer: int,
    batch: RaggedBatch,
    query: torch.Tensor,
    out: torch.Tensor,
    options: AttentionOptions,
) -> None:
    """Causal attention of a batch whose keys and values are in their pages.

    Args:
        pool: On a device.
        layer: A layer of the model.
        batch: T tokens of B sequences.
        query: ``[1, heads, T, size]``.
        out: Written, ``[1, T, heads, size]``, of the size of a value.
        options: How the layer attends, without softcap and sinks.
    """
    layout = pool.layout(batch.model)
    own = layout.layers[layer]
    starts, lengths = batch.cu_seqlens.tolist(), batch.seq_lens.tolist()
    for index, length in enumerate(lengths):
        rows = slice(starts[index], starts[index + 1])
        keys = query.new_empty((1, own.num_kv_heads, length, own.head_dim))
        values = query.new_empty((1, own.num_kv_heads, length, own.value_dim))
        pages = batch.block_table[index, : -(-length // layout.page_size)]
        _C.gather_kv(pool, batch.model, layer, pages, keys, values)
        attended = scaled_dot_product_attention(
            query[:, :, rows],
            keys,
            values,
            attn_mask=_mask(rows.stop - rows.start, length, options, query.device),
            scale=options.scale,
            enable_gqa=query.shape[1] != own.num_kv_heads,
        )
        out[:, rows] = attended.transpose(1, 2)


def _mask(new: int, length: int, options: AttentionOptions, device: torch.device) -> torch.Tensor:
    """The last ``new`` of ``length`` tokens see what is before them, in their window and chunk."""
    limits = [limit for limit in (options.window, options.chunk_size) if limit]
    if all(limit >= length for limit in limits):
        return causal_lower_right(new, length)
    place = torch.arange(length, device=device)
    own = place[length - new :, None]
    seen = own >= place
    if options.window:
        seen &= own - place < options.window
    if options.chunk_size:
        seen &= own // options.chunk_size == place // options.chunk_size
    return seen
