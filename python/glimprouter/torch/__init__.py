"""The operations as ``torch.ops.glimprouter.*``: what a compiled graph can hold.

Imported by :mod:`glimprouter.hf`; ``import glimprouter`` does not need torch. Every operation has
a fake kernel, so ``torch.compile(fullgraph=True, dynamic=True)`` traces it without running it.
Tensors and numbers only: no Python object becomes part of a graph.

- ``glimpse(logits, entropy_top_k=0)`` -> entropy, logsumexp, max_prob, margin (float32 ``[B]``),
  token (int32 ``[B]``), status (uint8 ``[B]``), as in :func:`glimprouter.glimpse`.
- ``sample(logits, substream, position, seed=0, temperature=1, top_p=1, top_k=0, min_p=0,
  purpose=0)`` -> token (int32 ``[B]``), as in :func:`glimprouter.sample`; ``substream`` and
  ``position`` are int64, one value or ``[B]``, ``seed`` lies in [0, 2^63).
- ``append_kv(arena, slot_mapping, block_table, cu_seqlens, seq_lens, layout, layer, keys, values)``
  writes one layer's keys and values into their pages.
- ``paged_attention(query, arena, <tables>, layout, layer, scale, window=0, softcap=0, sinks=None,
  chunk_size=0)`` -> what the tokens read from the pages.
- ``attend(query, keys, values, arena, <tables>, layout, layer, scale, window=0, softcap=0,
  sinks=None, chunk_size=0)``: ``append_kv`` (but for a layer that shares another's keys), then
  ``paged_attention``.
- ``attend_named(query, keys, values, name, layer, scale, window=0, softcap=0, sinks=None,
  chunk_size=0)``: what the pass that has this name does (:class:`.PassHandle`); for passes whose
  tables are on a device.

``arena`` is the memory of a :class:`glimprouter.PagePool` as a tensor of the pages' type
(:func:`arena_of`); the operations write into it in place. The tables are those of a
:class:`glimprouter.RaggedBatch`; they are checked at each call. Heads are ``[1, heads, T, size]``
in and ``[1, T, heads, size]`` out, or ``[T, heads, size]`` both ways. ``layout`` is
:attr:`glimprouter.KvLayout.numbers`.
"""

from glimprouter.torch import operations as _operations
from glimprouter.torch.passes import (
    AttendingPass,
    AttentionOptions,
    PassHandle,
    PassTables,
    arena_of,
)

__all__ = ["AttendingPass", "AttentionOptions", "PassHandle", "PassTables", "arena_of"]

del _operations
