"""The contract between a model's attention and whoever keeps its keys and values.

A layer hands queries, new keys and new values to the :class:`AttendingPass` of its forward pass,
which stores the keys and values and attends. Another backend is another class with that method.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch

from glimprouter.kv import PagePool, RaggedBatch

__all__ = [
    "AttendingPass",
    "AttentionOptions",
    "PassHandle",
    "PassTables",
    "arena_of",
    "named_pass",
]


def arena_of(pool: PagePool, dtype: torch.dtype) -> torch.Tensor:
    """The pool's memory as a tensor ``[elements]``, without a copy; it keeps the pool alive.

    Args:
        pool: A pool of pages of this element type.
        dtype: Element type of the pages.
    """
    with torch.inference_mode(False):  # a graph tells inference tensors from others
        return torch.from_numpy(pool.memory).view(dtype)


class AttentionOptions(NamedTuple):
    """How a layer attends, in the order in which operations take it; causal always.

    Attributes:
        scale: Factor of the scores.
        window: Tokens that a token sees, itself included; 0 for all before it.
        softcap: Scores are ``softcap * tanh(score / softcap)``; 0 for none.
        sinks: ``[heads]``, scores that take their share of the softmax and have no value; None for
            none.
        chunk_size: The sequence is cut every so many tokens, and a token sees none before its own
            cut (Llama 4); 0 for no cuts.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: torch.Tensor | None = None
    chunk_size: int = 0


class AttendingPass(Protocol):
    """A forward pass that keeps keys and values, and attends over all that it has kept."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Keeps the keys and values of new tokens, then attends over them and those before.

        Args:
            layer: A layer of the model.
            query: ``[B, heads, T, size]``; B is 1 in a packed pass, whose rows stand side by side.
            key: ``[B, KV heads, T, size]``.
            value: Likewise; a value may have another size than a key. A layer that shares the
                keys and values of another is given those, which are in the pages by then.
            options: How the layer attends.
            mask: Bool ``[B, tokens]``, False for padding, where rows are padded: a packed pass has
                none.

        Returns:
            ``[B, T, heads, size]``, of the size of a value.
        """


class PassTables(NamedTuple):
    """A pass as tensors and numbers, which a compiled graph takes: made once, for every layer.

    Attributes:
        arena: ``[elements]`` of the pages' type.
        slot_mapping: int64 ``[T]``.
        block_table: int32 ``[B, pages]``.
        cu_seqlens: int32 ``[B + 1]``.
        seq_lens: int32 ``[B]``.
        layout: Of the pages, :attr:`glimprouter.KvLayout.numbers`.
    """

    arena: torch.Tensor
    slot_mapping: torch.Tensor
    block_table: torch.Tensor
    cu_seqlens: torch.Tensor
    seq_lens: torch.Tensor
    layout: list[int]

    @classmethod
    def of(cls, pool: PagePool, batch: RaggedBatch, arena: torch.Tensor) -> PassTables:
        """The padded tables of a batch: no size but that of ``slot_mapping`` is ever 1.

        Args:
            pool: A pool of the cache that prepared the batch.
            batch: The forward pass.
            arena: ``arena_of(pool, ...)``.
        """
        layout = pool.layout(batch.model)
        slot_mapping, table, ends, lengths = (torch.from_numpy(c) for c in batch.padded_tables())
        return cls(arena, slot_mapping, table, ends, lengths, layout.numbers)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`AttendingPass`, packed."""
        attended: torch.Tensor = torch.ops.glimprouter.attend(
            query, key, value, *self, layer, *options
        )
        return attended


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
            device: The device of torch, where the pages are.
        """
        with torch.inference_mode(False):  # a graph tells inference tensors from others
            name = torch.zeros(1, dtype=torch.uint8, device=device)
        _named_passes[name.data_ptr()] = owner
        return cls(name)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`AttendingPass`, packed, by the pass that has the name."""
        attended: torch.Tensor = torch.ops.glimprouter.attend_named(
            query, key, value, *self, layer, *options
        )
        return attended


def named_pass(name: torch.Tensor) -> AttendingPass:
    """The pass that a handle names.

    Raises:
        ValueError: There is none.
    """
    owner = _named_passes.get(name.data_ptr())
    if owner is None:
        raise ValueError("no pass has this name: it is of a handle that is gone, or a copy")
    return owner
