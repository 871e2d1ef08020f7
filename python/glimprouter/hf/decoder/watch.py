"""Whether a model is still what it was: nobody watches it, changed its code or its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Watch:
    """Remembers a model's modules, their classes' code and where its weights are."""

    def __init__(self, model: Any) -> None:
        """As it is now.

        Args:
            model: Any module.
        """
        modules = list(model.modules())
        self._hooks = [getattr(module, name) for module in modules for name in _HOOKS]
        self._states = [module.__dict__ for module in modules]
        self._forwards = [(own, own.forward) for own in {type(module) for module in modules}]
        places = [  # of children, parameters and buffers: who holds what under which name
            (holder, name)
            for module in modules
            for holder in (module._modules, module._parameters, module._buffers)
            for name in holder
        ]
        self._holders = [holder for holder, _ in places]
        self._names = [name for _, name in places]
        self._held = [holder[name] for holder, name in places]
        self._tensors = [*model.parameters(), *model.buffers()]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]

    def unchanged(self) -> bool:
        """Whether calling the model would be what it was; runs before each pass."""
        return not (
            any(self._hooks)
            or torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
            or any("forward" in state for state in self._states)
            or any(own.forward is not forward for own, forward in self._forwards)
            or list(map(dict.get, self._holders, self._names)) != self._held
            or list(map(torch.Tensor.data_ptr, self._tensors)) != self._addresses
        )
