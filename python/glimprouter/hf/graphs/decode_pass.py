"""A model's decode pass over buffers that stay where they are, so that it can be captured.

A decode pass computes one new token of each of its sequences. Ids, positions and tables lie at
fixed addresses of the device; a smaller batch is padded, and what padding gives is dropped.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from glimprouter import _C
from glimprouter.hf.attention.paged import packed_forward
from glimprouter.kv import PagePool, RaggedBatch
from glimprouter.torch import AttentionOptions, PassHandle


class CompiledCall(Protocol):
    """A compiled decode pass."""

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, handle: PassHandle
    ) -> torch.Tensor:
        """Logits ``[n, V]`` of ids and positions ``[1, n]``, over the pages of a named pass."""


class DecodePass:
    """Room for ``sequences`` sequences with tables of ``pages`` pages, and the pass over them.

    Attributes:
        sequences: n, the rows of the logits.
    """

    def __init__(
        self,
        model: Any,
        pool: PagePool,
        index: int,
        sequences: int,
        pages: int,
        compiled: CompiledCall | None = None,
    ) -> None:
        """Buffers on the model's device; the pool stays alive with them.

        Args:
            model: That is served on pages.
            pool: A pool of pages on the model's device.
            index: Index of the model's layout in the pool.
            sequences: The most of a pass.
            pages: The most of a sequence.
            compiled: The model's decode pass; None for the model's own code.

        Raises:
            ValueError: A pool in host memory, or no such layout.
            RuntimeError: The device has not as much memory.
        """
        heads = model.config.get_text_config().num_attention_heads
        words = _C.DecodeTables.words(pool, index, sequences, pages, heads)
        with torch.inference_mode(False):
            memory = torch.zeros(words, dtype=torch.int64, device=model.device)
        self.sequences = sequences
        self._model = model
        self._compiled = compiled
        self._handle = PassHandle.of(self, model.device)
        self._num_layers = pool.layout(index).num_layers
        self._tables = _C.DecodeTables(pool, index, sequences, pages, heads, memory)
        self._scratch_size = self._tables.scratch_size
        # Strides follow from the size, or compilers would tell odd sizes from even ones.
        second = sequences + sequences % 2  # each column has room for an even number
        self._ids = memory[:sequences][None]
        self._positions = memory[second : second + sequences][None]

    def fill(self, batch: RaggedBatch) -> None:
        """Brings a batch to the buffers, on torch's current stream.

        Raises:
            ValueError: There is no room, or a sequence has several new tokens.
            RuntimeError: A graph is being captured now.
        """
        self._tables.fill(batch)

    @torch.inference_mode()
    def forward(self) -> torch.Tensor:
        """Computes what was filled in; logits ``[n, V]``, the batch's rows first.

        Raises:
            RuntimeError: A layer did not come by: the model has attention of its own.
        """
        if self._compiled is not None:
            return self._compiled(self._ids, self._positions, self._handle)
        return packed_forward(self._model, self._ids, self._positions, self, self._num_layers)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`glimprouter.torch.AttendingPass`, packed."""
        _, heads, tokens, _ = query.shape
        out = query.new_empty((1, tokens, heads, value.shape[-1]))
        # Of torch's allocator: what a graph holds of it stays the graph's, and layers share it.
        scratch = query.new_empty(self._scratch_size, dtype=torch.float32)
        self._tables.attend(layer, query, key, value, out, scratch, *options)
        return out
