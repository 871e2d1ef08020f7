"""Whether a model is still what it was: nobody watches it, changed its code or its weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from operator import is_
from types import NoneType
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from glimprouter import _C
from glimprouter.hf.decoder.parts import FUNCTIONS

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Of a configuration: what a forward pass reads there.
_SETTINGS = ("sliding_window", "num_hidden_layers", "rope_parameters", "layer_types")
_CALLED = ("linear", "embedding", "silu")  # of torch, by the modules of such models
_PLAIN = (bool, int, float, str, NoneType)


class Watch:
    """Remembers a model's modules, their code and settings, and where its weights are.

    What is read here is what a call of the model would read; that takes some microseconds a layer.
    """

    def __init__(self, model: Any) -> None:
        """As it is now.

        Args:
            model: A model of transformers.
        """
        self._modules = list(model.modules())
        self._types: list[Any] = list(map(type, self._modules))
        self._code = [(own, own.forward, own.__call__) for own in set(self._types)]
        hooks = [(module.__dict__, name) for module in self._modules for name in _HOOKS]
        self._references = _C.References(list(self._places(model)), hooks)
        self._tensors = _C.TensorPlaces([*model.parameters(), *model.buffers()])
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def _places(self, model: Any) -> Iterator[tuple[dict[str, Any], str]]:
        """Who holds what under which name: children, tensors, numbers and the like."""
        for module in self._modules:
            for holder in ("_modules", "_parameters", "_buffers"):
                yield module.__dict__, holder
                yield from ((module.__dict__[holder], name) for name in module.__dict__[holder])
            yield module.__dict__, "forward"  # there is none
            for name, value in module.__dict__.items():
                if isinstance(value, _PLAIN):
                    yield module.__dict__, name
        yield from ((vars(model.config), name) for name in _SETTINGS)
        yield from ((vars(sys.modules[type(model).__module__]), name) for name in FUNCTIONS)
        yield from ((vars(torch.nn.functional), name) for name in _CALLED)

    def unchanged(self) -> bool:
        """Whether calling the model would be what it was; runs before each pass."""
        return (
            self._references.unchanged()
            and self._tensors.unchanged()
            and all(map(is_, map(type, self._modules), self._types))
            and all(own.forward is code and own.__call__ is call for own, code, call in self._code)
            and all(torch.equal(buffer, before) for buffer, before in self._buffers)
            and not torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
        )
