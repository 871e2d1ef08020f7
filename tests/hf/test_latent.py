"""Multi-head latent attention on pages of latent vectors, against attention that expands them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import glimprouter as gr
from families import build
from glimprouter.hf import PagedCache
from glimprouter.hf.attention.latent import Given, expansion_of, latent_attention, lies_within
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import PagedPass
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.torch import AttentionOptions

FAMILIES = ["deepseek_v2", "deepseek_v3"]
HEADS, LATENT, ROTATED, KEYS, VALUES = 3, 32, 16, 24, 40


class Layer(torch.nn.Module):
    """What a layer's attention is seen by."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.kv_b_proj = torch.nn.Linear(LATENT, HEADS * (KEYS + VALUES), bias=False, **options)


class InMemory:
    """A pass of one sequence that attends in torch over what it is given, values as they come."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert lies_within(value, key)
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=options.scale, enable_gqa=True
        )
        return attended.transpose(1, 2)


def drawn(tokens: int, seed: int) -> tuple[torch.Tensor, Given]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, HEADS, tokens, KEYS + ROTATED, generator=generator).double()
    latent = torch.randn(1, 1, tokens, LATENT, generator=generator).double()
    rotated = torch.randn(1, 1, tokens, ROTATED, generator=generator).double()
    return query, Given(latent, rotated)


@pytest.mark.parametrize("seed", range(5))
def test_absorbed_is_expanded(seed: int) -> None:
    """In float64, where nothing is left to rounding."""
    torch.manual_seed(seed)
    module, tokens = Layer().double(), 2 + 3 * seed
    query, given = drawn(tokens, seed)
    states = module.kv_b_proj(given.latent).view(1, tokens, HEADS, KEYS + VALUES).transpose(1, 2)
    keys = torch.cat([states[..., :KEYS], given.rotated.expand(-1, HEADS, -1, -1)], -1)
    values = states[..., KEYS:]
    want = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, is_causal=True, scale=0.3
    )
    expansion = expansion_of(module, query, values, given)
    assert expansion is not None
    got = latent_attention(0, query, given, expansion, InMemory(), AttentionOptions(0.3))
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=0, atol=1e-12)


def test_layers_that_are_not_seen_to_be_latent() -> None:
    """By weights that are not all there is, or shapes that are others: expanded keys are kept."""
    query, given = drawn(3, 0)
    values = torch.zeros(1, HEADS, 3, VALUES)

    def known(module: Any, given: Given = given) -> bool:
        return expansion_of(module, query, values, given) is not None

    assert known(Layer())
    hooked = Layer()
    hooked.kv_b_proj.register_forward_hook(lambda *arguments: None)
    biased, other = Layer(), Layer()
    biased.kv_b_proj = torch.nn.Linear(LATENT, HEADS * (KEYS + VALUES))
    other.kv_b_proj = torch.nn.Sequential(other.kv_b_proj)
    assert not any(map(known, (hooked, biased, other, torch.nn.Module())))
    assert not known(Layer(), Given(given.latent, given.rotated[..., :8]))
    assert not known(Layer(), Given(given.latent.expand(-1, HEADS, -1, -1), given.rotated))


@pytest.mark.parametrize("family", FAMILIES)
def test_pages_hold_the_latent_vectors(family: str) -> None:
    """The layout of an expanded model shows what is spared."""
    layout = kv_layout(build(family))
    shape = gr.LayerShape(num_kv_heads=1, head_dim=48, value_dim=32, latent=True)
    assert layout.layers == [shape] * 4
    expanded = build(family)
    for layer in expanded.model.layers:
        layer.self_attn.kv_b_proj.register_forward_hook(lambda *arguments: None)
    wide = kv_layout(expanded)
    assert wide.layers == [gr.LayerShape(num_kv_heads=4, head_dim=32, value_dim=16)] * 4
    assert layout.page_bytes * 4 == wide.page_bytes
    assert why_not_paged(expanded) is None


def test_other_weights_are_seen_in_the_trial() -> None:
    """What is absorbed is the layer's own: with half of it, logits are others."""
    model = build("deepseek_v3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "glimprouter.hf.attention.function.expansion_of",
            lambda *arguments: type(own := expansion_of(*arguments))(own.keys / 2, own.values),
        )
        assert "differ by" in str(why_not_paged(model))
    assert why_not_paged(model) is None


def test_values_of_their_own_are_refused() -> None:
    """Pages of latent vectors have no room for them."""
    layout = kv_layout(build("deepseek_v3"))
    pool = gr.PagePool([layout], 4 * layout.page_bytes)
    cache = gr.KvCache(pool, 1)
    attending = PagedPass(pool, cache.prepare(0, [cache.open([[1, 2]])]))
    query, key, value = torch.ones(1, 4, 2, 48), torch.ones(1, 1, 2, 48), torch.ones(1, 1, 2, 32)
    with pytest.raises(RuntimeError, match="values of layer 0 no longer lie within its keys"):
        attending.attend(0, query, key, value, AttentionOptions(0.1))


def test_a_paged_cache_refuses_it() -> None:
    model = build("deepseek_v3")
    model.set_attn_implementation("glimprouter")
    with pytest.raises(ValueError, match="compresses its keys before it gives them to a cache"):
        PagedCache(model)
