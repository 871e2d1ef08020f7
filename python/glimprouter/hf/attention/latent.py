"""Multi-head latent attention over the latent vectors themselves (DeepSeek V2, arXiv 2405.04434).

A layer makes of each token one latent vector and one rotated key, which all heads share, and
expands the former to the keys and values of every head. Scores are the same whether a key is
expanded or its expansion is applied to the query (section 2.1.2 of the paper): so the pages hold
what all heads share, once, and attention reads it as one KV head whose values are the first part of
its keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from glimprouter.torch import AttendingPass, AttentionOptions

_LANES = 16  # of which head sizes are multiples


class Expansion(NamedTuple):
    """What a layer expands latent vectors by.

    Attributes:
        keys: ``[heads, expanded size, latent size]``.
        values: ``[heads, value size, latent size]``.
    """

    keys: torch.Tensor
    values: torch.Tensor


class Given(NamedTuple):
    """What a layer gives its cache.

    Attributes:
        latent: ``[B, 1, T, latent size]``.
        rotated: ``[B, 1, T, size]``.
    """

    latent: torch.Tensor
    rotated: torch.Tensor


def expansion_of(
    module: Any, query: torch.Tensor, value: torch.Tensor, given: Given
) -> Expansion | None:
    """How a layer expands what it gives its cache; None where it is not seen to be latent.

    Args:
        module: The layer's attention.
        query: ``[B, heads, T, expanded size + rotated size]``.
        value: ``[B, heads, T, value size]``, expanded.
        given: What it gave its cache.
    """
    linear = getattr(module, "kv_b_proj", None)
    # Another kind of layer (quantized, with an adapter) computes otherwise than by its weight.
    if type(linear) is not torch.nn.Linear or linear.bias is not None or linear._forward_hooks:
        return None
    heads, size = query.shape[1], query.shape[3]
    latent, rotated = given.latent.shape, given.rotated.shape
    keys = size - rotated[3]
    if latent[1] != 1 or rotated[1] != 1 or latent[3] % _LANES or (latent[3] + rotated[3]) % _LANES:
        return None
    if keys < 1 or linear.weight.shape != (heads * (keys + value.shape[3]), latent[3]):
        return None
    weight = linear.weight.detach().view(heads, keys + value.shape[3], latent[3])
    return Expansion(weight[:, :keys], weight[:, keys:])


def latent_attention(
    layer: int,
    query: torch.Tensor,
    given: Given,
    expansion: Expansion,
    attending: AttendingPass,
    options: AttentionOptions,
) -> torch.Tensor:
    """Attention over the latent vectors that the pass keeps; ``[B, T, heads, value size]``.

    Args:
        layer: A layer of the model.
        query: ``[B, heads, T, expanded size + rotated size]``.
        given: New tokens' latent vectors.
        expansion: Of the layer.
        attending: The pass.
        options: How the layer attends.
    """
    size = expansion.keys.shape[1]
    absorbed = query[..., :size] @ expansion.keys
    own = torch.cat([absorbed, query[..., size:]], dim=-1)
    key = torch.cat([given.latent, given.rotated], dim=-1)
    value = key[..., : given.latent.shape[3]]
    out = attending.attend(layer, own, key, value, options)
    return _expanded(out, expansion.values)


def _expanded(out: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[B, T, heads, latent size]`` as values; which matrix is on the left matters on a CPU."""
    if weight.dtype == torch.float32:
        return (out.transpose(1, 2) @ weight.transpose(1, 2)).transpose(1, 2)
    return (weight @ out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # five times as fast in bfloat16


def lies_within(value: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether values are the first elements of the keys, in the same memory."""
    return (
        value.data_ptr() == key.data_ptr()
        and value.stride() == key.stride()
        and value.shape[:-1] == key.shape[:-1]
        and value.shape[-1] <= key.shape[-1]
    )
