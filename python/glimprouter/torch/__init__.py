"""The operations as ``torch.ops.glimprouter.*``: what a compiled graph can hold.

Imported by :mod:`glimprouter.hf`; ``import glimprouter`` does not need torch. Every operation has
a fake kernel, so ``torch.compile(fullgraph=True, dynamic=True)`` traces it without running it.
Tensors and numbers only: no Python object becomes part of a graph.

- ``glimpse(logits, entropy_top_k=0)`` -> entropy, logsumexp, max_prob, margin (float32 ``[B]``),
  token (int32 ``[B]``), status (uint8 ``[B]``), as in :func:`glimprouter.glimpse`.
- ``sample(logits, substream, position, seed=0, temperature=1, top_p=1, top_k=0, min_p=0)`` -> token
  (int32 ``[B]``), as in :func:`glimprouter.sample`; ``substream`` and ``position`` are int64, one
  value or ``[B]``, ``seed`` lies in [0, 2^63).
- ``append_kv(arena, slot_mapping, block_table, cu_seqlens, seq_lens, num_layers, page_size, layer,
  keys, values)`` writes one layer's keys and values into their pages.
- ``paged_attention(query, arena, <tables>, num_layers, num_kv_heads, page_size, layer, scale,
  window=0, softcap=0)`` -> what the tokens read from the pages.
- ``attend(query, keys, values, arena, <tables>, num_layers, page_size, layer, scale, window=0,
  softcap=0)``: ``append_kv``, then ``paged_attention``.
- ``attend_named(query, keys, values, name, layer, scale, window=0, softcap=0)``: what the pass that
  has this name does (:class:`PassHandle`); for passes whose tables are on a device.

``arena`` is the memory of a :class:`glimprouter.PagePool` as a tensor of the pages' type
(:func:`arena_of`); the operations write into it in place. The tables are those of a
:class:`glimprouter.RaggedBatch`; they are checked at each call. Heads are ``[1, heads, T, size]``
in and ``[1, T, heads, size]`` out, or ``[T, heads, size]`` both ways.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch

from glimprouter import _C
from glimprouter.glimpse import glimpse, sample
from glimprouter.kv import PagePool, RaggedBatch

__all__ = ["PassHandle", "PassTables", "arena_of"]

_LIBRARY = torch.library.Library("glimprouter", "DEF")  # type: ignore[no-untyped-call]
_TABLES = "Tensor slot_mapping, Tensor block_table, Tensor cu_seqlens, Tensor seq_lens"
_OPTIONS = "int layer, float scale, int window=0, float softcap=0.0"


def arena_of(pool: PagePool, dtype: torch.dtype) -> torch.Tensor:
    """The pool's memory as a tensor ``[elements]``, without a copy; it keeps the pool alive.

    Args:
        pool: Of pages of this element type.
        dtype: Of the pages.
    """
    with torch.inference_mode(False):  # a graph tells inference tensors from others
        return torch.from_numpy(pool.memory).view(dtype)


class PassTables(NamedTuple):
    """A forward pass over pages as tensors and numbers, made once and read by every layer.

    Attributes:
        arena: ``[elements]`` of the pages' type.
        slot_mapping: int64 ``[T]``.
        block_table: int32 ``[B, pages]``.
        cu_seqlens: int32 ``[B + 1]``.
        seq_lens: int32 ``[B]``.
        num_layers: Of the layout.
        page_size: Of the layout.
    """

    arena: torch.Tensor
    slot_mapping: torch.Tensor
    block_table: torch.Tensor
    cu_seqlens: torch.Tensor
    seq_lens: torch.Tensor
    num_layers: int
    page_size: int

    @classmethod
    def of(cls, pool: PagePool, batch: RaggedBatch, arena: torch.Tensor) -> PassTables:
        """The padded tables of a batch: no size but that of ``slot_mapping`` is ever 1.

        Args:
            pool: Of the cache that prepared the batch.
            batch: The forward pass.
            arena: ``arena_of(pool, ...)``.
        """
        layout = pool.layout(batch.model)
        slot_mapping, table, ends, lengths = (torch.from_numpy(c) for c in batch.padded_tables())
        return cls(arena, slot_mapping, table, ends, lengths, layout.num_layers, layout.page_size)


class AttendingPass(Protocol):
    """A forward pass over pages that knows its own tables."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: tuple[float, int, float],
    ) -> torch.Tensor:
        """``[1, heads, T, size]`` to ``[1, T, heads, size]``; options: scale, window, softcap."""


_named_passes: WeakValueDictionary[int, AttendingPass] = WeakValueDictionary()


class PassHandle(NamedTuple):
    """A pass as a tensor, whose address is its name: so a graph may hold it.

    Attributes:
        name: uint8 ``[1]`` on the pages' device. Operations that take it write into the pages.
    """

    name: torch.Tensor

    @classmethod
    def of(cls, owner: AttendingPass, device: torch.device) -> PassHandle:
        """Names a pass as long as it lives, and the handle with it.

        Args:
            owner: The pass.
            device: Of torch, where the pages are.
        """
        with torch.inference_mode(False):  # a graph tells inference tensors from others
            name = torch.zeros(1, dtype=torch.uint8, device=device)
        _named_passes[name.data_ptr()] = owner
        return cls(name)


def _glimpse(logits: torch.Tensor, entropy_top_k: int = 0) -> tuple[torch.Tensor, ...]:
    fields = glimpse(logits.detach(), entropy_top_k=entropy_top_k or None)[:6]
    return tuple(field.contiguous() for field in fields)


def _check_rows(logits: torch.Tensor) -> None:
    if logits.dim() != 2:
        raise ValueError(
            f"logits must have the shape [rows, vocabulary], got {logits.dim()} dimensions"
        )


def _fake_glimpse(logits: torch.Tensor, entropy_top_k: int = 0) -> tuple[torch.Tensor, ...]:
    _check_rows(logits)
    types = (torch.float32,) * 4 + (torch.int32, torch.uint8)
    return tuple(logits.new_empty((logits.shape[0],), dtype=dtype) for dtype in types)


def _check_key_type(keys: torch.Tensor) -> None:
    if keys.dtype != torch.int64:
        raise TypeError(f"substream and position must be int64, got {keys.dtype}")


def _keys(values: torch.Tensor) -> npt.NDArray[np.uint64]:
    _check_key_type(values)
    return values.cpu().contiguous().view(-1).numpy().view(np.uint64)


def _sample(
    logits: torch.Tensor,
    substream: torch.Tensor,
    position: torch.Tensor,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> torch.Tensor:
    tokens: torch.Tensor = sample(
        logits.detach(),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        substream=_keys(substream),  # type: ignore[arg-type]
        position=_keys(position),  # type: ignore[arg-type]
    )
    return tokens.contiguous()


def _fake_sample(
    logits: torch.Tensor,
    substream: torch.Tensor,
    position: torch.Tensor,
    *options: Any,
    **named: Any,
) -> torch.Tensor:
    _check_rows(logits)
    for keys in (substream, position):
        _check_key_type(keys)
    return logits.new_empty((logits.shape[0],), dtype=torch.int32)


def _append_kv(
    arena: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    num_layers: int,
    page_size: int,
    layer: int,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    tables = (slot_mapping, block_table, cu_seqlens, seq_lens)
    geometry = (num_layers, _heads(keys), page_size)
    _C.append_kv_to(arena, tables, geometry, layer, keys, values)


def _fake_append_kv(*arguments: Any) -> None:
    """Nothing comes out of it."""


def _heads(states: torch.Tensor) -> int:
    return states.shape[1]  # [1, heads, T, size] and [T, heads, size] alike


def _output(query: torch.Tensor) -> torch.Tensor:
    """Uninitialised, with tokens before heads."""
    if query.dim() not in (3, 4):
        raise ValueError(f"queries must have three or four dimensions, got {query.dim()}")
    if query.dim() == 3:
        return query.new_empty(query.shape)
    batch, heads, tokens, size = query.shape
    return query.new_empty((batch, tokens, heads, size))


def _paged_attention(
    query: torch.Tensor,
    arena: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    num_layers: int,
    num_kv_heads: int,
    page_size: int,
    layer: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    out = _output(query)
    tables = (slot_mapping, block_table, cu_seqlens, seq_lens)
    geometry = (num_layers, num_kv_heads, page_size)
    _C.attend_over(arena, tables, geometry, layer, query, None, None, out, scale, window, softcap)
    return out


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    arena: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    num_layers: int,
    page_size: int,
    layer: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    out = _output(query)
    tables = (slot_mapping, block_table, cu_seqlens, seq_lens)
    geometry = (num_layers, _heads(keys), page_size)
    _C.attend_over(arena, tables, geometry, layer, query, keys, values, out, scale, window, softcap)
    return out


def _attend_named(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    name: torch.Tensor,
    layer: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    owner = _named_passes.get(name.data_ptr())
    if owner is None:
        raise ValueError("no pass has this name: it is of a handle that is gone, or a copy")
    return owner.attend(layer, query, keys, values, (scale, window, softcap))


def _fake_attention(query: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
    return _output(query)


def _define(
    name: str, schema: str, kernel: Any, fake: Any, devices: tuple[str, ...] = ("CPU",)
) -> None:
    _LIBRARY.define(f"{name}{schema}")  # type: ignore[no-untyped-call]
    for device in devices:
        _LIBRARY.impl(name, kernel, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"glimprouter::{name}", fake, lib=_LIBRARY)


_define(
    "glimpse",
    "(Tensor logits, int entropy_top_k=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _glimpse,
    _fake_glimpse,
    ("CPU", "CUDA"),
)
_define(
    "sample",
    "(Tensor logits, Tensor substream, Tensor position, SymInt seed=0, float temperature=1.0,"
    " float top_p=1.0, int top_k=0, float min_p=0.0) -> Tensor",
    _sample,
    _fake_sample,
    ("CPU", "CUDA"),
)
_define(
    "append_kv",
    f"(Tensor(a!) arena, {_TABLES}, int num_layers, int page_size, int layer, Tensor keys,"
    " Tensor values) -> ()",
    _append_kv,
    _fake_append_kv,
)
_define(
    "paged_attention",
    f"(Tensor query, Tensor arena, {_TABLES}, int num_layers, int num_kv_heads, int page_size,"
    f" {_OPTIONS}) -> Tensor",
    _paged_attention,
    _fake_attention,
)
_define(
    "attend",
    f"(Tensor query, Tensor keys, Tensor values, Tensor(a!) arena, {_TABLES}, int num_layers,"
    f" int page_size, {_OPTIONS}) -> Tensor",
    _attend,
    _fake_attention,
)
_define(
    "attend_named",
    f"(Tensor query, Tensor keys, Tensor values, Tensor(a!) name, {_OPTIONS}) -> Tensor",
    _attend_named,
    _fake_attention,
    ("CPU", "CUDA"),
)
