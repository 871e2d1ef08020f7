"""Which layers of a model attend, and what its others keep: found by a token in its own cache."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

_ARGUMENT = "past_key_values"
_KEYS_AND_VALUES = ("keys", "values")
# Layers whose keys and values pages can hold, with a state of their own or without.
_ON_PAGES = (DynamicLayer, DynamicSlidingWindowLayer)
_KNOWN = (*_ON_PAGES, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a sequence's state.

    Attributes:
        layer: Index of the layer that keeps it.
        attribute: Of the layer's cache.
        key: In that attribute, where it is a dict; else None.
        shape: Of one sequence.
        dtype: Its type.
        device: Where the layer is.
    """

    layer: int
    attribute: str
    key: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def of(self, layers: Sequence[Any]) -> torch.Tensor:
        """This tensor in the layers of a cache, ``[B, ...]``.

        Raises:
            ValueError: It is none of this shape.
        """
        value = getattr(layers[self.layer], self.attribute)
        value = value if self.key is None else value[self.key]
        if not isinstance(value, torch.Tensor) or tuple(value.shape[1:]) != self.shape:
            found = list(value.shape) if isinstance(value, torch.Tensor) else value
            raise ValueError(
                f"the state of layer {self.layer} has the shape {found}, behind one token it was"
                f" [1, {', '.join(map(str, self.shape))}]"
            )
        return value

    def put(self, layers: Sequence[Any], value: torch.Tensor | None) -> None:
        """Puts it there."""
        if self.key is None:
            setattr(layers[self.layer], self.attribute, value)
        else:
            getattr(layers[self.layer], self.attribute)[self.key] = value

    @property
    def num_bytes(self) -> int:
        """Of one sequence."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StateForm:
    """What a model keeps of a sequence.

    Attributes:
        attending: Layers with keys and values, ascending.
        tensors: All else, of fixed size.
        fresh: Layers of a cache without tokens.
        begun: Layers of one with a token; their tensors are None.
        argument: Of ``forward()`` that takes the cache; versions of transformers differ.
    """

    attending: tuple[int, ...]
    tensors: tuple[StateTensor, ...]
    fresh: tuple[Any, ...]
    begun: tuple[Any, ...]
    argument: str = _ARGUMENT

    @property
    def num_bytes(self) -> int:
        """Of the state of one sequence."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def layers(self, states: Sequence[torch.Tensor] | None) -> list[Any]:
        """Layers of a cache for a pass.

        Args:
            states: For each of ``tensors``, ``[B, ...]``, which the pass may write into; None for
                rows without tokens.
        """
        layers = [_copied(layer) for layer in (self.fresh if states is None else self.begun)]
        for tensor, state in zip(self.tensors, states or (), strict=states is not None):
            tensor.put(layers, state)
        return layers

    def states_of(self, layers: Sequence[Any]) -> list[torch.Tensor]:
        """The other way round, behind the pass.

        Raises:
            ValueError: A tensor has another shape than it should.
        """
        return [tensor.of(layers) for tensor in self.tensors]


def _copied(layer: Any) -> Any:
    """A layer's cache with dicts of its own."""
    twin = copy.copy(layer)
    for name, value in vars(twin).items():
        if isinstance(value, dict):
            setattr(twin, name, dict(value))
    return twin


def _tensors_of(index: int, layer: Any) -> Iterator[StateTensor]:
    for name, value in vars(layer).items():
        if name in _KEYS_AND_VALUES:
            continue
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for key, entry in entries:
            if isinstance(entry, torch.Tensor):
                yield StateTensor(
                    index, name, key, tuple(entry.shape[1:]), entry.dtype, entry.device
                )


def keeps_states(model: Any) -> bool:
    """Whether some layers of a model keep a state of fixed size, as far as transformers knows."""
    try:
        layers = _cache(model).layers
    except Exception:  # a configuration of layers that its caches do not know; a trial decides
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def _cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


@torch.inference_mode()
def find_state_form(model: Any) -> StateForm | None:
    """The form of a model's states; None for a model that has keys and values only.

    Raises:
        ValueError: It keeps what neither pages nor rows of a fixed size can hold.
    """
    if not keeps_states(model):
        return None
    cache: Any = _cache(model)
    fresh = tuple(_copied(layer) for layer in cache.layers)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    named = inspect.signature(model.forward).parameters
    argument = "cache" if "cache" in named and "past_key_values" not in named else _ARGUMENT
    model(input_ids=token, use_cache=True, **{argument: cache})
    attending = [
        index
        for index, layer in enumerate(cache.layers)
        if isinstance(getattr(layer, "keys", None), torch.Tensor)
    ]
    for index, layer in enumerate(cache.layers):
        if type(layer) not in _KNOWN and type(layer).__name__ != "DummyLayer":
            raise ValueError(f"layer {index} keeps what pages do not hold: {type(layer).__name__}")
    if not attending:
        raise ValueError("it has no layer that attends: there is nothing for pages to hold")
    tensors = tuple(
        tensor for index, layer in enumerate(cache.layers) for tensor in _tensors_of(index, layer)
    )
    for index in attending:
        cache.layers[index].keys = cache.layers[index].values = None
    for tensor in tensors:
        tensor.put(cache.layers, None)
    return StateForm(tuple(attending), tensors, fresh, tuple(cache.layers), argument)
