"""What a model is given for a cache in a packed pass, if it asks for one: it keeps nothing."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache


class Keeper(Protocol):
    """A pass that is told what a layer gives its cache."""

    def give(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """A layer's new keys and values, before it makes of them what it attends over."""


class PassCache(Cache):
    """A cache in name: what it is given goes to the pass, and each token has a past of its own.

    Llama 4 makes the queries of some layers larger by ``arange(T) + get_seq_length()`` and not by
    the positions that it is given; with this that sum is the positions. Models with multi-head
    latent attention give their cache the latent vectors, and attend over what they expand these to.
    """

    def __init__(self, positions: torch.Tensor, keeper: Keeper | None) -> None:
        """For one pass.

        Args:
            positions: ``[1, T]``.
            keeper: The pass; None for one that has no use for what it would be given.
        """
        super().__init__(layers=[])
        tokens = torch.arange(positions.shape[1], device=positions.device)
        self._before: Any = positions[0] - tokens
        self._keeper = keeper

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they are."""
        if self._keeper is not None:
            self._keeper.give(layer_idx, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Position minus place in the pass, int64 ``[T]``: what is added to ``arange(T)``."""
        before: int = self._before
        return before


def asked_of_a_cache(
    config: Any, positions: torch.Tensor, keeper: Keeper | None = None
) -> dict[str, Any]:
    """Arguments of a packed pass for a model whose layers need a cache, if only to ask it.

    Args:
        config: Of the text model.
        positions: ``[1, T]``.
        keeper: The pass.
    """
    temperature = getattr(config, "attn_temperature_tuning", False)
    latent = keeper is not None and getattr(config, "kv_lora_rank", None)
    return {"past_key_values": PassCache(positions, keeper)} if temperature or latent else {}
