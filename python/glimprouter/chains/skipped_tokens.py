"""A block of a decoder over some of the tokens, with the keys and values of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glimprouter.chains.plain_cache import why_not_plain

if TYPE_CHECKING:
    import torch


class _KeysAndValues(Exception):
    """No error: it ends a layer once its keys and values are there."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        self.keys, self.values, self.layer = keys, values, layer


class _Capture:
    """Stands in for a cache, and ends the layer that comes to it."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> None:
        raise _KeysAndValues(keys, values, layer)


class _Merged:
    """Stands in for a cache: what a layer computed of some tokens, with what there is of others."""

    def __init__(
        self, cache: Any, others: _KeysAndValues, some: torch.Tensor, rest: torch.Tensor
    ) -> None:
        self._cache = cache
        self._others = others
        self._some, self._rest = some, rest

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self._in_order(keys, self._others.keys)
        values = self._in_order(values, self._others.values)
        if self._cache is None:
            return keys, values
        merged: tuple[torch.Tensor, torch.Tensor] = self._cache.update(keys, values, layer)
        return merged

    def _in_order(self, some: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        shape = list(some.shape)
        shape[-2] += rest.shape[-2]
        whole = some.new_empty(shape)
        return whole.index_copy(-2, self._some, some).index_copy(-2, self._rest, rest)


def past_length(cache: Any, block: int) -> int:
    """Tokens that a cache holds of one block; 0 where there is no cache.

    Raises:
        ValueError: A cache that is not keys and values by layer.
    """
    if cache is None:
        return 0
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise ValueError(f"a {type(cache).__name__} is not known; use a DynamicCache")
    if block < len(layers) and (reason := why_not_plain(layers[block])):
        raise ValueError(f"layer {block} of the cache {reason}")
    return int(cache.get_seq_length(block))


def forward_some(
    forward: Callable[..., Any],
    hidden: torch.Tensor,
    some: torch.Tensor,
    rest: torch.Tensor,
    past: int,
    options: dict[str, Any],
) -> torch.Tensor:
    """A block's output, where only some tokens go through it.

    The others' keys and values are computed, of the state in which they pass by, and kept like any.
    Their queries attend to nothing, and they see neither the output projection nor the MLP.

    Args:
        forward: The block's own.
        hidden: ``[1, T, hidden size]``.
        some: Indices of those that go through, ascending; may be empty.
        rest: Indices of the others, ascending, not empty.
        past: Tokens in the cache.
        options: Of the block's call.

    Raises:
        TypeError: A block that computes no keys and values in the known way.
    """
    cache: Any = options.get("past_key_values")
    if cache is None and len(some) == 0:
        return hidden  # nobody will ask
    others = _keys_and_values(forward, hidden, rest, past, options)
    if len(some) == 0:
        cache.update(others.keys, others.values, others.layer)
        return hidden
    called = _of_rows(options, hidden, some, past)
    called["past_key_values"] = _Merged(cache, others, some, rest)
    through = forward(hidden.index_select(1, some), **called)
    if isinstance(through, tuple):
        raise TypeError("the block gives a tuple; only one that gives its hidden states is known")
    return hidden.index_copy(1, some, through)


def _keys_and_values(
    forward: Callable[..., Any],
    hidden: torch.Tensor,
    rows: torch.Tensor,
    past: int,
    options: dict[str, Any],
) -> _KeysAndValues:
    called = _of_rows(options, hidden, rows, past)
    called["past_key_values"] = _Capture()
    try:
        forward(hidden.index_select(1, rows), **called)
    except _KeysAndValues as found:
        return found
    raise TypeError("the block hands no keys and values to past_key_values.update()")


def _of_rows(
    options: dict[str, Any], hidden: torch.Tensor, rows: torch.Tensor, past: int
) -> dict[str, Any]:
    """The options of a call over some of the tokens."""
    import torch

    called = dict(options)
    mask = options.get("attention_mask")
    if mask is None:
        places = torch.arange(past + hidden.shape[1], device=hidden.device)
        seen = places[None] <= (past + rows)[:, None]
        mask = hidden.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(hidden.dtype).min)
        called["attention_mask"] = mask[None, None]
    elif isinstance(mask, torch.Tensor) and mask.dim() == 4:
        called["attention_mask"] = mask.index_select(2, rows)
    else:
        raise TypeError(f"an attention mask of type {type(mask).__name__} is not known")
    if (angles := options.get("position_embeddings")) is not None:
        called["position_embeddings"] = tuple(part.index_select(-2, rows) for part in angles)
    for name in ("position_ids", "cache_position"):
        if (value := options.get(name)) is not None:
            called[name] = value.index_select(-1, rows)
    return called
