"""How long each token's past is, for models that ask their cache: no number is true of a batch."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache


class TokenPasts(Cache):
    """A cache in name: it keeps nothing, and has an answer of its own for each packed token.

    Llama 4 makes the queries of some layers larger by ``arange(T) + get_seq_length()`` and not by
    the positions that it is given; with this that sum is the positions.
    """

    def __init__(self, positions: torch.Tensor) -> None:
        """For one pass.

        Args:
            positions: ``[1, T]``.
        """
        super().__init__(layers=[])
        tokens = torch.arange(positions.shape[1], device=positions.device)
        self._before: Any = positions[0] - tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they are: the pass keeps them."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Position minus place in the pass, int64 ``[T]``: what is added to ``arange(T)``."""
        before: int = self._before
        return before


def asked_of_a_cache(config: Any, positions: torch.Tensor) -> dict[str, Any]:
    """Arguments of a packed pass for a model that asks its cache how long the past is.

    Args:
        config: Of the text model.
        positions: ``[1, T]``.
    """
    if not getattr(config, "attn_temperature_tuning", False):
        return {}
    return {"past_key_values": TokenPasts(positions)}
