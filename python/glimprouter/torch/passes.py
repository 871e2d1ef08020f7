"""Forward passes over pages as an attention operation sees them: by their tables, or by name."""

from __future__ import annotations

from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch

from glimprouter.kv import PagePool, RaggedBatch

__all__ = ["AttendingPass", "PassHandle", "PassTables", "arena_of", "named_pass"]


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
        slots: int64 ``[T]``.
        block_table: int32 ``[B, pages]``.
        cu_seqlens: int32 ``[B + 1]``.
        key_lengths: int32 ``[B]``.
        num_layers: Of the layout.
        page_tokens: Of the layout.
    """

    arena: torch.Tensor
    slots: torch.Tensor
    block_table: torch.Tensor
    cu_seqlens: torch.Tensor
    key_lengths: torch.Tensor
    num_layers: int
    page_tokens: int

    @classmethod
    def of(cls, pool: PagePool, batch: RaggedBatch, arena: torch.Tensor) -> PassTables:
        """The padded tables of a batch: no size but that of ``slots`` is ever 1.

        Args:
            pool: Of the cache that prepared the batch.
            batch: The forward pass.
            arena: ``arena_of(pool, ...)``.
        """
        layout = pool.layout(batch.model)
        slots, table, ends, lengths = (torch.from_numpy(c) for c in batch.padded_tables())
        return cls(arena, slots, table, ends, lengths, layout.num_layers, layout.page_tokens)


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


def named_pass(name: torch.Tensor) -> AttendingPass:
    """The pass that a handle names.

    Raises:
        ValueError: There is none.
    """
    owner = _named_passes.get(name.data_ptr())
    if owner is None:
        raise ValueError("no pass has this name: it is of a handle that is gone, or a copy")
    return owner
