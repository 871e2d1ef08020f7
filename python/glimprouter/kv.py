"""Paged keys and values of several models: one arena, and the same generated tokens for all.

Where vocabularies differ, a :class:`VocabularyMap` says which tokens are the same, and a
:class:`TokenLedger` (each sequence of a cache has one) holds the text in the ids of each model.

:class:`KvCache` decides which pages a forward pass writes and reads; the functions here do it, a
layer at a time, on tensors of any framework (float32, bfloat16, float16; cast to the pages' type).
Shapes are ``[tokens, heads, size]``, or what an attention function of ``transformers`` is given
(``[1, heads, tokens, size]``) and returns (``[1, tokens, heads, size]``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glimprouter import _C
from glimprouter._C import (
    KvCache,
    KvLayout,
    LayerLayout,
    LayerShape,
    OutOfPages,
    PagePool,
    RaggedBatch,
    TokenLedger,
    VocabularyMap,
)

__all__ = [
    "KvCache",
    "KvLayout",
    "LayerLayout",
    "LayerShape",
    "OutOfPages",
    "PagePool",
    "RaggedBatch",
    "TokenLedger",
    "VocabularyMap",
    "append_kv",
    "append_kv_layers",
    "gather_kv",
    "gather_kv_layers",
    "paged_attention",
    "set_attention_loads",
    "stage_batch",
]


def append_kv(pool: PagePool, layer: int, batch: RaggedBatch, keys: Any, values: Any) -> None:
    """Write one layer's keys and values of a batch's tokens into their pages.

    Args:
        pool: The pool of the cache that prepared the batch, or the batch's model's.
        layer: In ``[0, num_layers)``.
        batch: Tells the slot_mapping; T tokens.
        keys: ``[T, KV heads, size]`` or ``[1, KV heads, T, size]``, contiguous along ``size``.
        values: Likewise, of the size that the layer's values have; None for a latent layer, which
            keeps them within its keys (:class:`LayerShape`).

    Raises:
        TypeError: Another element type.
        ValueError: Another shape, stride, device or layer; or a layer that shares another's keys.
    """
    _C.append_kv(pool, layer, batch, keys, values)


def paged_attention(
    pool: PagePool,
    layer: int,
    batch: RaggedBatch,
    queries: Any,
    out: Any,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Any = None,
    chunk_size: int = 0,
) -> None:
    """Causal attention of a batch's tokens over the pages of their sequences, read in place.

    Bitwise the same on every instruction set, for any batch, and however a prefill is cut.

    Args:
        pool: As in :func:`append_kv`, which comes first for the batch's own tokens.
        layer: In ``[0, num_layers)``.
        batch: T tokens of B sequences.
        queries: ``[T, heads, size]`` or ``[1, heads, T, size]``; ``heads`` is a multiple of the KV
            heads, ``size`` a multiple of 16.
        out: Written: ``[T, heads, size]`` or ``[1, T, heads, size]``, of the size of a value.
        scale: Factor of the scores, usually ``size ** -0.5``.
        window: Tokens that a token sees, itself included; 0 for all before it.
        softcap: Scores become ``softcap * tanh(score / softcap)``; 0 is off.
        sinks: ``[heads]``, float32, bfloat16 or float16: scores that take their share of each
            softmax and have no value (attention sinks, as in gpt-oss), neither scaled nor capped.
            None is off.
        chunk_size: The sequence is cut every so many tokens, and a token sees none before its own
            cut (chunked attention, Llama 4); 0 is off.

    Raises:
        TypeError: Another element type.
        ValueError: Another shape, stride, device or layer, or an option out of range.
    """
    _C.paged_attention(pool, layer, batch, queries, out, scale, window, softcap, sinks, chunk_size)


def set_attention_loads(loads: str) -> str:
    """Chooses how attention on a device brings keys and values to a processor, in this process.

    No result depends on it. The environment variable ``GLIMPROUTER_ATTENTION_LOADS`` says what a
    process begins with; without it that is ``"direct"``, for ``"staged"`` has not been measured on
    a GPU yet. Graphs keep what they were captured with; pages in host memory have no such choice.

    Args:
        loads: ``"direct"``: each thread loads what it needs when it needs it. ``"staged"``: copies
            into shared memory run ahead, where heads have at most 256 elements; others are direct.

    Returns:
        What was chosen before.

    Raises:
        ValueError: Another name.
    """
    return _C.set_attention_loads(loads)


def gather_kv(
    pool: PagePool, model: int, layer: int, pages: Sequence[int], keys: Any, values: Any
) -> None:
    """Copy the first keys and values of one sequence and layer out of its pages.

    Args:
        pool: The pool.
        model: Index of the model's layout.
        layer: In ``[0, num_layers)``.
        pages: ``KvCache.pages(model, sequence)``.
        keys: Written: ``[T, KV heads, size]`` or ``[1, KV heads, T, size]`` for the first T tokens.
        values: Likewise.

    Raises:
        TypeError: Another element type.
        ValueError: Another shape, stride, device, layer, or too few pages.
    """
    _C.gather_kv(pool, model, layer, pages, keys, values)


def append_kv_layers(pool: PagePool, batch: RaggedBatch, keys: Any, values: Any) -> None:
    """Write all layers' keys and values of a batch's tokens into their pages, at once.

    Args:
        pool: The pool of the cache that prepared the batch, or the batch's model's.
        batch: Tells the slot_mapping; T tokens.
        keys: ``[layers, T, KV heads, size]``, contiguous along ``size``.
        values: Likewise.

    Raises:
        TypeError: Another element type.
        ValueError: Another shape, stride or device.
    """
    _C.append_kv_layers(pool, batch, keys, values)


def gather_kv_layers(
    pool: PagePool, model: int, pages: Sequence[int], keys: Any, values: Any
) -> None:
    """Copy the first keys and values of one sequence out of all layers of its pages, at once.

    Args:
        pool: The pool.
        model: Index of the model's layout.
        pages: ``KvCache.pages(model, sequence)``.
        keys: Written: ``[layers, T, KV heads, size]`` for the first T tokens.
        values: Likewise.

    Raises:
        TypeError: Another element type.
        ValueError: Another shape, stride or device, or too few pages.
    """
    _C.gather_kv_layers(pool, model, pages, keys, values)


def stage_batch(
    pool: PagePool, batch: RaggedBatch, heads: int, like: Any, *, window: int = 0
) -> None:
    """Make the calls for a batch fit for a CUDA graph: they then only launch kernels.

    Brings the batch's tables to the device and takes the memory that its attention needs. Where
    more memory is needed than the pool had, graphs captured before are void. Nothing is done where
    the pages are in host memory.

    Args:
        pool: The pool of the cache that prepared the batch, or the batch's model's.
        batch: What will be captured.
        heads: Query heads, a multiple of the KV heads.
        like: A tensor where the pages are; its framework's current stream is used.
        window: As in :func:`paged_attention`.

    Raises:
        ValueError: Another number of heads, a negative window, another device.
        RuntimeError: The device has no more memory, or a graph is being captured now.
    """
    _C.stage_batch(pool, batch, heads, window, like)
