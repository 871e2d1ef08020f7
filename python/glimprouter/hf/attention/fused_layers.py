"""What stands between the matrix products of a model as one operation each, during our own passes.

Between the matrix products of a layer, transformers calls some forty small operations of torch; for
a single token they cost more than the products of a small model. What they compute is found by
trying, and only what gives the model's own results is replaced: a norm and a gated MLP by its
``forward``, the rotary embedding by the function that the attention calls. Everything is put on the
instances of the modules when a pass begins and taken away when it ends, so the user's model, its
hooks and all other code of transformers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from glimprouter.hf.attention.fused_mlp import find_mlp
from glimprouter.hf.attention.fused_norms import FoundNorm, find_norm
from glimprouter.hf.attention.fused_operations import NARROW, Operations, operations_on
from glimprouter.hf.attention.fused_rotary import FusedRotary

Forward = Callable[..., Any]


class FusedLayers:
    """The norms, rotary embeddings and activations of one model that have a fused form."""

    def __init__(self, model: Any, device: str = "cpu") -> None:
        """Tries every module of a model; takes some milliseconds a layer.

        Args:
            model: A model of transformers, left as it is. On the CPU in float32, or nothing is
                found: in the narrow types the model's own roundings are kept there.
            device: The engine's name of the device that the model is on.
        """
        self._model = model
        self._forwards: list[tuple[dict[str, Any], Forward]] = []
        narrow = model.dtype in NARROW and device != "cpu"
        if model.dtype is not torch.float32 and not narrow:
            return
        operations = operations_on(device)
        if model.device != operations.home:
            return
        with torch.inference_mode():
            self._find(model, operations)

    def _find(self, model: Any, operations: Operations) -> None:
        modules = list(model.modules())
        norms: dict[int, FoundNorm] = {}
        for module in modules:
            if (norm := find_norm(module, operations)) is not None:
                norms[id(module)] = norm
        rotary = FusedRotary(operations, model.dtype)
        width = model.config.get_text_config().hidden_size
        for module in modules:
            forward = rotary.find(module, norms, width) or find_mlp(module, operations, model.dtype)
            if forward is not None:
                self._forwards.append((module.__dict__, forward))
        for module in modules:
            if id(module) in norms and id(module) not in rotary.postponed:
                self._forwards.append((module.__dict__, norms[id(module)].fused(operations)))

    def __len__(self) -> int:
        """Modules that run otherwise in a pass."""
        return len(self._forwards)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The modules compute in their fused form until the block ends, however it ends.

        Not in training mode, and not where somebody else (``accelerate``, say) has put a forward on
        the instance.
        """
        changed: list[tuple[dict[str, Any], Forward]] = []
        try:
            if not self._model.training:
                for state, forward in self._forwards:
                    if "forward" not in state:
                        state["forward"] = forward
                        changed.append((state, forward))
            yield
        finally:
            for state, forward in changed:
                if state.get("forward") is forward:
                    del state["forward"]
