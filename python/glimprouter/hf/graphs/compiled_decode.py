"""A model's decode pass on a device, compiled (``torch.compile``): what its graphs then hold."""

from __future__ import annotations

from typing import Any

import torch

from glimprouter.hf.graphs.compiled import CompiledModel, warm_up_cache
from glimprouter.hf.graphs.decode_pass import DecodePass
from glimprouter.torch import PassHandle

_WARM_UP_SEQUENCES = 3  # any number but 1, which has a graph of its own


class CompiledDecode(CompiledModel):
    """The decode pass of one model, compiled for one sequence and for any other number of them."""

    def __init__(
        self, model: Any, device: str, max_sequences: int, backend: Any = "inductor"
    ) -> None:
        """Compiles what is needed; takes seconds to minutes.

        Args:
            model: A model that can be served on pages.
            device: Where it is, other than the CPU.
            max_sequences: The most of a pass.
            backend: Backend of ``torch.compile``.

        Raises:
            Exception: Whatever ``torch.compile(fullgraph=True)`` raises for the model's code.
        """
        super().__init__(model, backend)
        pool, cache, rows = warm_up_cache(model, (1,) * _WARM_UP_SEQUENCES, device)
        for sequences, room in ((rows[:1], 1), (rows[1:], _WARM_UP_SEQUENCES)):
            if max_sequences == 1 < room:
                break
            batch = cache.prepare(0, sequences)
            decode = DecodePass(model, pool, 0, room, 1, self)
            decode.fill(batch)
            decode.forward()
            cache.complete(batch)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, handle: PassHandle
    ) -> torch.Tensor:
        """Logits ``[n, V]`` of ids and positions ``[1, n]``, over the pages of a named pass."""
        return self.logits(ids, positions, handle)
