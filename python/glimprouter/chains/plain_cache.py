"""Caches that are keys and values by layer, one of each for every token, and nothing else."""

from __future__ import annotations

from typing import Any


def plain_cache(model: Any) -> Any:
    """An empty cache of a model whose layers keep keys and values only.

    Args:
        model: A causal language model of transformers.

    Returns:
        A ``DynamicCache`` whose layers are all a ``DynamicLayer``.

    Raises:
        ValueError: It keeps something else, or less: the message has what.
    """
    from transformers import DynamicCache

    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} has an encoder; give a decoder-only language model")
    asked = getattr(getattr(model, "generation_config", None), "cache_implementation", None)
    if asked not in (None, "dynamic"):
        raise ValueError(
            f"the generation_config of {name} asks for a cache that is {asked!r}; keys and values"
            " are read here as the model computed them: set cache_implementation to None"
        )
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if reason := why_not_plain(layer):
            raise ValueError(f"layer {index} of {name} {reason}")
    return cache


def why_not_plain(layer: Any) -> str | None:
    """What a layer of a cache keeps that is no list of keys and values, or None."""
    from transformers.cache_utils import DynamicLayer

    if type(layer) is DynamicLayer:
        return None
    kind = type(layer).__name__
    if hasattr(layer, "recurrent_states") or "LinearAttention" in kind:
        return f"keeps a recurrent state ({kind}), which is of no single token"
    if getattr(layer, "is_sliding", False):
        return f"has a sliding window ({kind}), so it drops keys and values"
    if "Quantized" in kind:
        return f"keeps quantized keys and values ({kind})"
    return f"has a cache of another kind ({kind}); only a DynamicLayer is known here"
