"""The decode pass of a model that keeps states, over buffers that stay where they are.

The states lie in slots, which stay where they are too: which of them a pass reads, and which it
writes once it has read all, are numbers on the device.
"""

from __future__ import annotations

from typing import Any

import torch

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.stateful import rows_forward
from glimprouter.hf.graphs.fixed_pass import FixedPass
from glimprouter.hf.graphs.sizes import PassSize
from glimprouter.hf.state.sequences import StateMove
from glimprouter.hf.state.slots import StateSlots
from glimprouter.kv import PagePool, RaggedBatch


class StatefulDecodePass(FixedPass):
    """As :class:`FixedPass`, with the states of its sequences; padding has a slot of its own."""

    def __init__(
        self,
        model: Any,
        pool: PagePool,
        index: int,
        size: PassSize,
        slots: StateSlots,
        fused: FusedLayers | None = None,
    ) -> None:
        """Buffers on the model's device.

        Args:
            model: That is served on pages.
            pool: A pool of pages on the model's device.
            index: Index of the model's layout in the pool.
            size: The most of a decode pass.
            slots: Of the model's states, on its device.
            fused: Layers that the model's code computes in their fused form; None for none.

        Raises:
            ValueError: A pool in host memory, no such layout, or states that lie elsewhere.
            RuntimeError: The device has not as much memory.
        """
        super().__init__(model, pool, index, size, fused=fused)
        if any(tensor.device != model.device for tensor in slots.tensors):
            raise ValueError(f"its states lie on other devices than {model.device}")
        self._slots = slots
        self._before: tuple[list[int], list[torch.Tensor]] | None = None
        with torch.inference_mode(False):
            self._moves = torch.empty(2, size.sequences, dtype=torch.long, device=model.device)

    def fill_states(self, batch: RaggedBatch, move: StateMove, *, once: bool) -> None:
        """Brings a batch to the buffers, and which slots its states are in.

        Args:
            batch: The batch.
            move: Its states, all of which have tokens.
            once: Whether nothing can make the pass be computed again; else :meth:`take_back` can.
        """
        self.fill(batch, batch.last_rows)
        sources = [slot for slot in move.sources if slot is not None]
        self._before = None if once else (sources, self._slots.gather(sources))
        padding = [self._slots.num_slots] * (self.size.sequences - len(move.targets))
        self._moves.copy_(torch.tensor([[*sources, *padding], [*move.targets, *padding]]))

    def take_back(self) -> None:
        """States are as they were before the pass, some of which may have been written."""
        if self._before is not None:
            self._slots.write(*self._before)

    @torch.inference_mode()
    def forward(self) -> torch.Tensor:
        """Computes what was filled in, and moves the states; logits ``[n, V]``.

        Raises:
            RuntimeError: A layer did not come by: the model has attention of its own.
        """
        sources, targets = self._moves
        before = [tensor.index_select(0, sources) for tensor in self._slots.tensors]
        ids, positions = self._ids.view(-1, 1), self._positions.view(-1, 1)
        with self._own_layers():
            logits, after = rows_forward(
                self._model, ids, positions, self, self._slots.form, before, start=1
            )
        for tensor, state in zip(self._slots.tensors, after, strict=True):
            tensor.index_copy_(0, targets, state)
        return logits
