"""Tiny decoders whose tokens skip blocks, and their layers by hand in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen3Config

from glimprouter.chains import BlockScorer, TokenFeatures
from tiny_models import tiny

LAYERS = 4
IDS = [5, 9, 11, 60, 61, 7, 33, 48, 90, 12, 71]
SKIPS = np.random.default_rng(4).random((LAYERS, len(IDS))) < 0.4


@cache
def model_of(config: Any = Qwen3Config, attention: str = "sdpa", **options: Any) -> Any:
    return tiny(config, num_hidden_layers=LAYERS, attn_implementation=attention, **options)


class Says(BlockScorer):
    """A rule of a test: what a function of block and position says."""

    def __init__(self, skips: Callable[[int, int], bool], attention: bool = False) -> None:
        self.skips = skips
        self.reads_attention = attention
        self.seen: list[TokenFeatures] = []

    def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
        self.seen.append(features)
        return np.array([float(self.skips(features.block, int(p))) for p in features.position])


def some(block: int, position: int) -> bool:
    """Tokens of each block, others in each."""
    return bool(SKIPS[block, position])


@torch.inference_mode()
def logits_of(model: Any, ids: list[int] = IDS, **options: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([ids]), **options).logits[0]
    return logits


def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight.double() * x * scale


def turned(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of ``[T, heads, size]`` at positions 0 .. T - 1."""
    tokens, _, size = x.shape
    rates = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates
    cos, sin = (part.repeat(1, 2)[:, None] for part in (angles.cos(), angles.sin()))
    first, second = x.split(size // 2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@torch.inference_mode()
def by_hand(model: Any, ids: list[int], skips: Callable[[int, int], bool]) -> torch.Tensor:
    """The logits in float64, a token at a time through each block."""
    config = model.config
    theta = config.rope_parameters["rope_theta"]
    x = model.model.embed_tokens.weight.double()[ids]
    for block, layer in enumerate(model.model.layers):
        part = layer.self_attn
        h = normed(x, layer.input_layernorm)
        q, k, v = (
            (h @ p.weight.double().T).view(len(ids), -1, config.head_dim)
            for p in (part.q_proj, part.k_proj, part.v_proj)
        )
        if hasattr(part, "q_norm"):
            q, k = normed(q, part.q_norm), normed(k, part.k_norm)
        q, k = turned(q, theta), turned(k, theta)
        group = q.shape[1] // k.shape[1]
        rows = []
        for t in range(len(ids)):
            if skips(block, t):
                rows.append(x[t])
                continue
            heads = []
            for head in range(q.shape[1]):
                keys, values = k[: t + 1, head // group], v[: t + 1, head // group]
                weights = torch.softmax(keys @ q[t, head] / config.head_dim**0.5, 0)
                heads.append(weights @ values)
            y = x[t] + part.o_proj.weight.double() @ torch.cat(heads)
            h2 = normed(y, layer.post_attention_layernorm)
            gate, up = (m.weight.double() @ h2 for m in (layer.mlp.gate_proj, layer.mlp.up_proj))
            down = layer.mlp.down_proj.weight.double()
            rows.append(y + down @ (torch.nn.functional.silu(gate) * up))
        x = torch.stack(rows)
    return normed(x, model.model.norm) @ model.lm_head.weight.double().T
