"""A model's pass on a device, compiled (``torch.compile``): what its graphs then hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from glimprouter.hf.graphs.compiled import (
    CompiledForward,
    CompiledModel,
    compile_each,
    warm_up_cache,
)
from glimprouter.hf.graphs.fixed_pass import FixedPass
from glimprouter.hf.graphs.sizes import PassSize
from glimprouter.torch import PassHandle

# No two numbers of a size are equal, or the compiler would take them for one and the same.
_ONE_TOKEN = PassSize(tokens=1, sequences=1, pages=1, wanted=1, most_tokens=1)
_SEVERAL_TOKENS = PassSize(tokens=5, sequences=4, pages=1, wanted=3, most_tokens=2)


def compile_pair(
    models: Mapping[str, Any], devices: Mapping[str, str], wanted: bool
) -> tuple[dict[str, CompiledForward] | None, dict[str, CompiledPass] | None]:
    """What a pair computes with: on the CPU whole passes, on devices those that are captured.

    Args:
        models: By name.
        devices: Where the pages of each are: all on the CPU, or none.
        wanted: Whether anything is compiled.

    Raises:
        RuntimeError: A model's code cannot be compiled.
    """
    if not wanted:
        return None, None
    if set(devices.values()) == {"cpu"}:
        return compile_each(models, CompiledForward), None
    return None, compile_each(models, CompiledPass, devices)


class CompiledPass(CompiledModel):
    """The pass of one model, compiled for a single token and for any other number of them."""

    def __init__(self, model: Any, device: str, backend: Any = "inductor") -> None:
        """Compiles; takes seconds to minutes.

        Args:
            model: A model that can be served on pages.
            device: Where it is, other than the CPU.
            backend: Backend of ``torch.compile``.

        Raises:
            Exception: Whatever ``torch.compile(fullgraph=True)`` raises for the model's code.
        """
        super().__init__(model, backend)
        pool, cache, rows = warm_up_cache(model, (1, 1, 2, 1), device)
        for sequences, size in ((rows[:1], _ONE_TOKEN), (rows[1:], _SEVERAL_TOKENS)):
            batch = cache.prepare(0, sequences)
            fixed = FixedPass(model, pool, 0, size, self)
            fixed.fill(batch, batch.last_rows)
            fixed.forward()
            cache.complete(batch)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, handle: PassHandle, keep: torch.Tensor
    ) -> torch.Tensor:
        """Logits ``[n, V]`` of the tokens ``keep`` ``[n]``, over the pages of a named pass.

        Ids and positions are ``[1, T]``.
        """
        return self.logits(ids, positions, handle, keep)
