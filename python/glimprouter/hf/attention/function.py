"""The attention function that transformers calls, and the pass that it hands the work to.

It is told which pass by one of two ways:

- the engine packs the unseen tokens of all sequences side by side, ``[1, T]``, with their own
  positions and without a mask, and passes the pass through the model's arguments;
- under ``generate()``, :class:`glimprouter.hf.PagedCache` leaves a note on the keys, and the
  padding comes as the mask ``[B, tokens]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from glimprouter.hf.attention.latent import Given, expansion_of, latent_attention
from glimprouter.torch import AttendingPass, AttentionOptions

ATTENTION_NAME = "glimprouter"
# The same function under a name without a mask: transformers would look for packed sequences in
# every pass of the engine, only to hand over nothing.
_PACKED_NAME = "glimprouter_packed"
_NOTE = "_glimprouter_pass"  # attribute of the keys that a PagedCache has seen


def leave_note(key: torch.Tensor, attending: AttendingPass) -> None:
    """Tells the attention function which pass these keys belong to."""
    setattr(key, _NOTE, attending)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    glimprouter_pass: AttendingPass | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``[B, heads, T, size]`` in, ``[B, T, heads, size]`` out; B is 1 but under a PagedCache."""
    attending = getattr(key, _NOTE, None) if glimprouter_pass is None else glimprouter_pass
    if attending is None:
        raise RuntimeError(
            "this attention needs a PagedPass, which RoutedModel gives, or"
            " past_key_values=glimprouter.hf.PagedCache(model)"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    sinks = None if s_aux is None else s_aux.detach()
    chunk = _chunk_size(module)
    options = AttentionOptions(scale, sliding_window or 0, softcap or 0.0, sinks, chunk)
    layer = module.layer_idx
    take = getattr(attending, "given", None)  # of a pass that layers give what they give caches
    given: Given | None = take(layer) if take else None
    if given is not None and given.latent is not key:
        expansion = expansion_of(module, query, value, given)
        if expansion is not None:
            return latent_attention(layer, query, given, expansion, attending, options), None
    return attending.attend(layer, query, key, value, options, attention_mask), None


def _chunk_size(module: Any) -> int:
    """Of a layer with chunked attention, which its mask alone would say."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds or kinds[module.layer_idx] != "chunked_attention":
        return 0
    return int(config.attention_chunk_size)  # type: ignore[union-attr]


def _padding_mask(
    attention_mask: torch.Tensor | None = None, use_vmap: bool = False, **kwargs: Any
) -> torch.Tensor | None:
    """The mask of the padding as it is: causal order and windows are the attention's own."""
    if use_vmap:
        raise ValueError("attention over pages is causal; this model asks for another mask")
    return attention_mask


for _name in (ATTENTION_NAME, _PACKED_NAME):
    AttentionInterface.register(_name, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _padding_mask)


@contextmanager
def own_attention(config: Any, name: str = _PACKED_NAME) -> Iterator[None]:
    """The model is the user's: it has its own attention back after each pass."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
