"""Norms and rotary embeddings in their fused form: their results, and whose modules they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GlmConfig,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

import glimprouter as gr
import hf_pairs
from glimprouter import _C
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.hf.engine.choice import choose_engine
from glimprouter.kv import KvCache, PagePool
from tiny_models import LAYERS, counted, tiny

ON_CPU = {"small": "cpu", "large": "cpu"}
WIDTHS = (1, 2, 7, 8, 31, 48, 64, 100, 1023, 4096)
# Norms of a model and of a layer; each layer has one attention with a rotary embedding.
FAMILIES = {
    "llama": (LlamaConfig, 1 + 2 * LAYERS),
    "qwen3": (Qwen3Config, 1 + 4 * LAYERS),
    "gemma2": (Gemma2Config, 1 + 4 * LAYERS),
    "gemma3": (Gemma3TextConfig, 1 + 6 * LAYERS),
}


def norm_of(hidden: torch.Tensor, weight: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    out = torch.empty(hidden.shape)
    _C.rms_norm(hidden, weight, 1e-6, offset, out)
    return out


def logits_of(model: Any, fused: FusedLayers | None, ids: list[int]) -> torch.Tensor:
    """Of the last token of one sequence on pages."""
    layout = kv_layout(model)
    pool = PagePool([layout], 4 * layout.page_bytes, layout.page_bytes)
    cache = KvCache(pool, 1)
    batch = cache.prepare(0, [cache.open([ids])])
    return paged_forward(model, pool, batch, fused)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_against_float64(width: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(width)
    hidden = 3 * torch.randn(5, width, generator=generator)
    weight = torch.randn(width, generator=generator)
    exact = hidden.double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = exact * (weight + offset).double()
    np.testing.assert_allclose(norm_of(hidden, weight, offset), want, rtol=2**-22)


@pytest.mark.parametrize("width", [7, 64, 1023])
def test_a_row_has_the_same_bits_in_any_batch_and_layout(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(2, 3, 4, width, generator=generator)
    weight = torch.randn(width, generator=generator)
    want = norm_of(rows, weight)
    for index in np.ndindex(2, 3, 4):
        assert torch.equal(norm_of(rows[index], weight), want[index])
    assert torch.equal(norm_of(rows.transpose(0, 2), weight), want.transpose(0, 2))
    inner = rows.transpose(0, 3).contiguous().transpose(0, 3)
    assert inner.stride(-1) != 1
    assert torch.equal(norm_of(inner, weight), want)
    assert torch.equal(norm_of(rows[:, :1].expand(2, 3, 4, width), weight)[:, 2], want[:, 0])


@pytest.mark.parametrize("tokens", [1, 5])
def test_rotary_embeddings_have_the_bits_of_torch(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(1, tokens, 4, 32, generator=generator).transpose(1, 2)
    keys = torch.randn(1, tokens, 2, 32, generator=generator).transpose(1, 2)
    cosine, sine = torch.randn(2, 1, tokens, 32, generator=generator)
    out = torch.empty(queries.shape), torch.empty(keys.shape)
    _C.rotate_heads(queries, keys, cosine, sine, *out)
    want = apply_rotary_pos_emb(queries, keys, cosine, sine)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out, want, strict=True))


def test_arguments_are_checked() -> None:
    rows, weight = torch.randn(3, 8), torch.randn(8)
    with pytest.raises(TypeError, match="hidden must be float32"):
        _C.rms_norm(rows.bfloat16(), weight, 1e-6, 0.0, torch.empty(3, 8))
    with pytest.raises(ValueError, match="weight must be contiguous, as long as"):
        _C.rms_norm(rows, torch.randn(7), 1e-6, 0.0, torch.empty(3, 8))
    with pytest.raises(ValueError, match="out must be contiguous, of the shape"):
        _C.rms_norm(rows, weight, 1e-6, 0.0, torch.empty(8, 3).T)
    with pytest.raises(ValueError, match="epsilon must be >= 0"):
        _C.rms_norm(rows, weight, -1.0, 0.0, torch.empty(3, 8))
    heads = torch.randn(1, 2, 3, 8)
    angles = torch.randn(1, 2, 8)
    with pytest.raises(ValueError, match="cosine and sine must have the shape"):
        _C.rotate_heads(heads, heads, angles, angles, heads.clone(), heads.clone())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_and_rotary_embedding_is_found(family: str) -> None:
    config_class, norms = FAMILIES[family]
    model = tiny(config_class)
    fused = FusedLayers(model)
    assert len(fused) == norms + LAYERS
    ids = list(range(1, 40))
    want = logits_of(model, None, ids)
    got = logits_of(model, fused, ids)
    assert (got - want).abs().max() <= 1e-5 * want.std()
    assert not torch.equal(got, want) or family == "llama"  # it did run otherwise


def test_what_computes_something_else_is_left_alone() -> None:
    """Interleaved or partial rotary embeddings, norms that subtract the mean."""
    cohere = FusedLayers(tiny(CohereConfig))
    assert len(cohere) == 0
    glm = FusedLayers(tiny(GlmConfig, partial_rotary_factor=0.5))
    assert len(glm) == 1 + 2 * LAYERS  # its norms only
    phi = tiny(Phi3Config, partial_rotary_factor=0.5)
    want = logits_of(phi, None, [3, 4, 5])
    assert (logits_of(phi, FusedLayers(phi), [3, 4, 5]) - want).abs().max() <= 1e-5 * want.std()


class LookAlike(torch.nn.Module):
    """Has what a norm has, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        norm = hidden.square().mean(-1, keepdim=True).sqrt() + self.eps
        return hidden / norm * self.weight.exp() / np.e


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (Qwen3RMSNorm(8), True),
        (Gemma3RMSNorm(8), True),
        (torch.nn.RMSNorm(8, eps=1e-5), True),
        (torch.nn.RMSNorm(8), False),  # its epsilon depends on the type
        (torch.nn.RMSNorm(8, eps=1e-5, elementwise_affine=False), False),
        (torch.nn.LayerNorm(8, bias=False), False),
        (torch.nn.PReLU(8), False),
        (LookAlike(), False),
    ],
)
def test_norms_are_found_by_what_they_compute(module: torch.nn.Module, found: bool) -> None:
    model = tiny(CohereConfig)
    model.extra = module
    assert len(FusedLayers(model)) == found


def test_narrow_types_keep_their_own_roundings() -> None:
    assert len(FusedLayers(tiny(Qwen3Config).bfloat16())) == 0


def test_a_model_that_became_narrow_computes_as_before() -> None:
    model = tiny(Qwen3Config)
    fused = FusedLayers(model)
    model.bfloat16()
    ids = list(range(1, 20))
    assert torch.equal(logits_of(model, fused, ids), logits_of(model, None, ids))


def test_weights_are_read_at_each_pass() -> None:
    model = tiny(Gemma3TextConfig)
    fused = FusedLayers(model)
    with torch.no_grad():
        model.model.norm.weight += 1.0
    model.model.layers[0].input_layernorm.weight = torch.nn.Parameter(torch.full((64,), 0.5))
    want = logits_of(model, None, [1, 2, 3])
    assert (logits_of(model, fused, [1, 2, 3]) - want).abs().max() <= 1e-5 * want.std()


def assert_untouched(model: Any) -> None:
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_the_modules_have_their_own_forward_back() -> None:
    model = tiny(Qwen3Config)
    fused = FusedLayers(model)
    assert_untouched(model)
    with fused.installed():
        assert "forward" in vars(model.model.norm)
    assert_untouched(model)
    with pytest.raises(KeyError), fused.installed():
        raise KeyError
    assert_untouched(model)
    with fused.installed(), fused.installed():  # two passes at a time
        pass
    assert_untouched(model)


def test_not_in_training_mode_and_not_over_a_forward_of_somebody_else() -> None:
    model = tiny(Qwen3Config)
    fused = FusedLayers(model)
    with fused.installed():
        pass
    model.train()
    with fused.installed():
        assert_untouched(model)
    model.eval()
    own = model.model.norm.forward
    model.model.norm.forward = own
    with fused.installed():
        assert model.model.norm.forward is own
    assert model.model.norm.forward is own
    assert len(FusedLayers(model)) == len(fused) - 1


def test_hooks_of_the_user_fire_in_passes_and_not_in_trials() -> None:
    model = tiny(Qwen3Config)
    layer = model.model.layers[1]
    kv_layout(model)  # looks at its layers, once
    with counted(layer.self_attn) as attention, counted(layer.self_attn.q_norm) as norm:
        fused = FusedLayers(model)
        assert attention == norm == []
        logits_of(model, fused, [1, 2, 3])
        assert attention == norm == ["before", "after"]


def test_which_engine_has_fused_layers() -> None:
    model = tiny(Qwen3Config)
    pair = {"small": model, "large": model}
    assert set(choose_engine("auto", pair, ON_CPU).fused) == {"small", "large"}
    assert not choose_engine("auto", pair, ON_CPU, fuse=False).fused
    assert not choose_engine("gather", pair, ON_CPU).fused
    assert_untouched(model)


def test_a_trial_that_fails_leaves_the_layers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every module by itself does not show: then the model is served without."""

    def wrong(hidden: Any, weight: Any, epsilon: float, offset: float, out: torch.Tensor) -> None:
        out.fill_(1.0)

    model = tiny(Qwen3Config)
    fused = FusedLayers(model)
    monkeypatch.setattr("glimprouter.hf.engine.choice.FusedLayers", lambda model, device: fused)
    monkeypatch.setattr(_C, "rms_norm", wrong)
    chosen = choose_engine("paged", {"small": model}, ON_CPU)
    assert chosen.name == "paged"
    assert not chosen.fused


def test_a_failing_pass_of_a_routed_model_restores_its_layers() -> None:
    pair = hf_pairs.random_pair("qwen3")
    config = gr.RouterConfig(threshold=pair.threshold, max_think_tokens=8, max_answer_tokens=2)
    routed = RoutedModel(pair.small, pair.large, pair.tokenizer, config, engine="paged")
    assert routed.fused

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    layer = pair.small.model.layers[-1]
    handle = layer.mlp.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="planted"):
            routed.generate(pair.prompts[:1])
    finally:
        handle.remove()
    assert_untouched(pair.small)
    assert routed.generate(pair.prompts[:1])
    assert_untouched(pair.small)
    assert_untouched(pair.large)
