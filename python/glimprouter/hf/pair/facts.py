"""Facts about a model, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SERVED_LAYERS = {"full_attention", "sliding_attention"}


def unserved_layer(model: Any) -> str | None:
    """A type of layer whose state is more than keys and values; None where there is none."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return min(set(types) - _SERVED_LAYERS, default=None)


def context_length(model: Any) -> int:
    """Largest number of positions of a model."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 2**31 - 1))


def rope_depends_on_length(config: Any) -> bool:
    """Whether the rotary embeddings of a pass depend on its longest position.

    Then a short sequence is another one beside a long one. Such is "longrope", which has factors
    for short and for long texts. ("dynamic" changes only beyond ``max_position_embeddings``, which
    no sequence here exceeds.)

    Args:
        config: Configuration of the text model; the parameters may be nested, a mapping for each
            type of layer.
    """
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    parameters = parameters or {}
    nested = [own for own in parameters.values() if isinstance(own, Mapping)]
    return any(own.get("rope_type", own.get("type")) == "longrope" for own in (parameters, *nested))
