"""What a model keeps of a sequence in a cache of its own, whatever it is: copied, saved, read back.

A cache of transformers is a tree of objects whose leaves are tensors and plain values. Copies share
what the model replaces and never writes into (keys and values that grow by concatenation); all else
is copied.
"""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_PLAIN = (bool, int, float, str, type(None))
_GROWS_BY_COPY = (DynamicLayer.update, DynamicSlidingWindowLayer.update)
_TENSOR, _OBJECT, _LIST, _TUPLE, _MAP, _KEPT = "tensor", "object", "list", "tuple", "map", "kept"


def _layers(state: Any) -> Iterable[Any]:
    return getattr(state, "layers", None) or ()


def can_be_cut(state: Any) -> bool:
    """Whether the last tokens can be dropped: keys and values of all tokens, and nothing else."""
    return type(state) is DynamicCache and all(
        type(layer) is DynamicLayer or type(layer).__name__ == "DummyLayer"
        for layer in _layers(state)
    )


def cut(state: Any, length: int) -> None:
    """Keeps the first tokens of a state that can be cut."""
    for layer in _layers(state):
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys = layer.keys[..., :length, :]
            layer.values = layer.values[..., :length, :]


@torch.inference_mode()
def copy_state(state: Any, kept: Iterable[Any]) -> Any:
    """Another state with the same past, which goes its own way.

    Args:
        state: What the model keeps.
        kept: Objects that both share, such as the configuration.
    """
    memo: dict[int, Any] = {id(entry): entry for entry in kept}
    for layer in _layers(state):
        if getattr(type(layer), "update", None) in _GROWS_BY_COPY:
            for tensor in (layer.keys, layer.values):
                memo[id(tensor)] = tensor
    return copy.deepcopy(state, memo)


def bytes_of(states: Iterable[Any]) -> int:
    """Memory of all tensors in some states; what several share is counted once."""
    seen: set[int] = set()
    total = 0
    waiting = list(states)
    while waiting:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen or _is_kept(value):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        elif isinstance(value, list | tuple | deque):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        else:
            waiting.extend(getattr(value, "__dict__", {}).values())
    return total


def save_state(state: Any) -> tuple[str, dict[str, torch.Tensor]]:
    """A state as text and tensors, for :func:`load_state`.

    Raises:
        ValueError: It holds what is neither a tensor, nor a plain value, nor made of those.
    """
    tensors: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}

    def describe(value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, torch.Tensor):
            if id(value) not in names:
                names[id(value)] = str(len(names))
                tensors[names[id(value)]] = value.detach().clone().contiguous()
            return {_TENSOR: names[id(value)]}
        if isinstance(value, list):
            return {_LIST: [describe(entry) for entry in value]}
        if isinstance(value, tuple):
            return {_TUPLE: [describe(entry) for entry in value]}
        if isinstance(value, dict):
            if not all(isinstance(name, str | int) for name in value):
                raise ValueError(f"the model's cache has keys that cannot be saved: {list(value)}")
            return {_MAP: [[name, describe(entry)] for name, entry in value.items()]}
        if _is_kept(value):
            return {_KEPT: _class_name(value)}
        if not hasattr(value, "__dict__"):
            raise ValueError(f"the model's cache holds what cannot be saved: {value!r:.80}")
        own = {name: describe(entry) for name, entry in vars(value).items()}
        return {_OBJECT: _class_name(value), "holds": own}

    return json.dumps(describe(state)), tensors


def load_state(fresh: Any, saved: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A saved state.

    Args:
        fresh: A state of the same model that holds a token or more: its objects are filled, so that
            nothing is made by the name that a file gives.
        saved: The text of :func:`save_state`.
        tensors: Its tensors.

    Raises:
        ValueError: The two are not of the same kind.
    """
    placed: dict[str, torch.Tensor] = {}

    def fill(old: Any, new: Any) -> Any:
        if not isinstance(new, dict):
            return new
        kind, body = next(iter(new.items()))
        if kind == _TENSOR:
            if body not in placed:
                like = old if isinstance(old, torch.Tensor) else None
                tensor = tensors[body].clone()
                placed[body] = tensor if like is None else tensor.to(like.device)
            return placed[body]
        if kind in (_LIST, _TUPLE):
            olds = list(old) if isinstance(old, list | tuple) else []
            olds += [None] * (len(body) - len(olds))
            entries = [fill(before, entry) for before, entry in zip(olds, body, strict=False)]
            return entries if kind == _LIST else tuple(entries)
        if kind == _MAP:
            by_name = old if isinstance(old, dict) else {}
            return {name: fill(by_name.get(name), entry) for name, entry in body}
        if body != _class_name(old):
            raise ValueError(
                f"the saved state has {body} where this model has {_class_name(old)}: it is of"
                " another model, or of another version of transformers"
            )
        if kind == _OBJECT:
            for name, entry in new["holds"].items():
                setattr(old, name, fill(getattr(old, name, None), entry))
        return old

    return fill(fresh, json.loads(saved))


def _is_kept(value: Any) -> bool:
    """Whether a value belongs to the model, or to the process, and not to the sequence."""
    belongs = (PreTrainedConfig, torch.nn.Module, torch.dtype, torch.device, torch.Stream, type)
    return isinstance(value, belongs) or callable(value)


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
