"""The operations of ``torch.ops.glimprouter``: their schemas, kernels and fake kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glimprouter import _C
from glimprouter.glimpse import glimpse, sample
from glimprouter.torch.passes import AttentionOptions, named_pass

_LIBRARY = torch.library.Library("glimprouter", "DEF")  # type: ignore[no-untyped-call]
_TABLES = "Tensor slot_mapping, Tensor block_table, Tensor cu_seqlens, Tensor seq_lens"
_OPTIONS = (
    "int layer, float scale, int window=0, float softcap=0.0, Tensor? sinks=None, int chunk_size=0"
)


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
    purpose: int = 0,
) -> torch.Tensor:
    tokens: torch.Tensor = sample(
        logits.detach(),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        substream=_keys(substream),
        position=_keys(position),
        purpose=purpose,
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
    layout: Sequence[int],
    layer: int,
    keys: torch.Tensor,
    values: torch.Tensor | None,
) -> None:
    tables = (slot_mapping, block_table, cu_seqlens, seq_lens)
    _C.append_kv_to(arena, tables, layout, layer, keys, values)


def _fake_append_kv(*arguments: Any) -> None:
    """Nothing comes out of it."""


def _output(query: torch.Tensor, size: int) -> torch.Tensor:
    """Uninitialised, with tokens before heads; of so many elements a head."""
    if query.dim() not in (3, 4):
        raise ValueError(f"queries must have three or four dimensions, got {query.dim()}")
    if query.dim() == 3:
        return query.new_empty((*query.shape[:2], size))
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, size))


def _value_dim(layout: Sequence[int], layer: int) -> int:
    """Of a layer, by the numbers of :attr:`glimprouter.KvLayout.numbers`."""
    count, value_dim, run = 1, 3, 6
    left = layer
    for at in range(1, len(layout), run):
        if left < layout[at + count - 1]:
            return layout[at + value_dim]
        left -= layout[at + count - 1]
    raise ValueError(f"layer must lie in [0, {layer - left}), got {layer}")


def _paged_attention(
    query: torch.Tensor,
    arena: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    layout: Sequence[int],
    layer: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    chunk_size: int = 0,
) -> torch.Tensor:
    out = _output(query, _value_dim(layout, layer))
    tables = (slot_mapping, block_table, cu_seqlens, seq_lens)
    options = (scale, window, softcap, sinks, chunk_size)
    _C.attend_over(arena, tables, layout, layer, query, None, None, out, *options)
    return out


def _fake_paged_attention(
    query: torch.Tensor,
    arena: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    layout: Sequence[int],
    layer: int,
    *options: Any,
    **named: Any,
) -> torch.Tensor:
    return _output(query, _value_dim(layout, layer))


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    arena: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    layout: Sequence[int],
    layer: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    chunk_size: int = 0,
) -> torch.Tensor:
    out = _output(query, values.shape[-1])
    tables = (slot_mapping, block_table, cu_seqlens, seq_lens)
    options = (scale, window, softcap, sinks, chunk_size)
    _C.attend_over(arena, tables, layout, layer, query, keys, values, out, *options)
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
    sinks: torch.Tensor | None = None,
    chunk_size: int = 0,
) -> torch.Tensor:
    return named_pass(name).attend(
        layer, query, keys, values, AttentionOptions(scale, window, softcap, sinks, chunk_size)
    )


def _fake_attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *arguments: Any, **named: Any
) -> torch.Tensor:
    return _output(query, values.shape[-1])


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
    " float top_p=1.0, int top_k=0, float min_p=0.0, int purpose=0) -> Tensor",
    _sample,
    _fake_sample,
    ("CPU", "CUDA"),
)
_define(
    "append_kv",
    f"(Tensor(a!) arena, {_TABLES}, int[] layout, int layer, Tensor keys, Tensor? values) -> ()",
    _append_kv,
    _fake_append_kv,
)
_define(
    "paged_attention",
    f"(Tensor query, Tensor arena, {_TABLES}, int[] layout, {_OPTIONS}) -> Tensor",
    _paged_attention,
    _fake_paged_attention,
)
_define(
    "attend",
    f"(Tensor query, Tensor keys, Tensor values, Tensor(a!) arena, {_TABLES}, int[] layout,"
    f" {_OPTIONS}) -> Tensor",
    _attend,
    _fake_attend,
)
_define(
    "attend_named",
    f"(Tensor query, Tensor keys, Tensor values, Tensor(a!) name, {_OPTIONS}) -> Tensor",
    _attend_named,
    _fake_attend,
    ("CPU", "CUDA"),
)
