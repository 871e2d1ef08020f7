"""A model's pass over buffers that stay where they are, so that it can be captured.

Ids, positions and tables lie at fixed addresses of the device; a smaller pass is padded, and what
padding gives is dropped.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from glimprouter import _C
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.paged import packed_forward
from glimprouter.hf.graphs.sizes import PassSize
from glimprouter.kv import PagePool, RaggedBatch
from glimprouter.torch import AttentionOptions, PassHandle


class CompiledCall(Protocol):
    """A compiled pass."""

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, handle: PassHandle, keep: torch.Tensor
    ) -> torch.Tensor:
        """Logits ``[n, V]`` of the tokens ``keep`` ``[n]``, over the pages of a named pass.

        Ids and positions are ``[1, T]``.
        """


class FixedPass:
    """Room for a pass, and the pass.

    Attributes:
        size: What it has room for.
    """

    def __init__(
        self,
        model: Any,
        pool: PagePool,
        index: int,
        size: PassSize,
        compiled: CompiledCall | None = None,
        fused: FusedLayers | None = None,
    ) -> None:
        """Buffers on the model's device; the pool stays alive with them.

        Args:
            model: That is served on pages.
            pool: A pool of pages on the model's device.
            index: Index of the model's layout in the pool.
            size: The most of a pass.
            compiled: The model's pass, compiled; None for the model's own code.
            fused: Layers that the model's own code computes in their fused form; None for none.

        Raises:
            ValueError: A pool in host memory, or no such layout.
            RuntimeError: The device has not as much memory.
        """
        heads = model.config.get_text_config().num_attention_heads
        words = _C.GraphTables.words(pool, index, *size, heads)
        with torch.inference_mode(False):
            memory = torch.zeros(words, dtype=torch.int64, device=model.device)
        self.size = size
        self._model = model
        self._compiled = compiled
        self._fused = fused
        self._handle = PassHandle.of(self, model.device)
        self._num_layers = pool.layout(index).num_layers
        self._tables = _C.GraphTables(pool, index, *size, heads, memory)
        self._scratch_size = self._tables.scratch_size
        # Strides follow from the size, or compilers would tell odd sizes from even ones.
        column = size.tokens + size.tokens % 2  # each has room for an even number
        self._ids = memory[: size.tokens][None]
        self._positions = memory[column : column + size.tokens][None]
        self._wanted = memory[3 * column : 3 * column + size.wanted]

    def fill(self, batch: RaggedBatch, wanted: npt.NDArray[np.int32]) -> None:
        """Brings a batch to the buffers, on torch's current stream.

        Args:
            batch: That fits.
            wanted: Tokens of the batch whose logits are wanted.

        Raises:
            ValueError: There is no room.
            RuntimeError: A graph is being captured now.
        """
        self._tables.fill(batch, wanted)

    @torch.inference_mode()
    def forward(self) -> torch.Tensor:
        """Computes what was filled in; logits ``[wanted, V]``, those of the batch first.

        Raises:
            RuntimeError: A layer did not come by: the model has attention of its own.
        """
        if self._compiled is not None:
            return self._compiled(self._ids, self._positions, self._handle, self._wanted)
        place = self._ids, self._positions, self, self._num_layers, self._wanted
        with self._own_layers():
            return packed_forward(self._model, *place)

    def _own_layers(self) -> AbstractContextManager[None]:
        """The model computes with the layers of this pass."""
        return self._fused.installed() if self._fused else nullcontext()

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
