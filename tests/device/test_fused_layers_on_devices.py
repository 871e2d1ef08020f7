"""Layers in their fused form on a device: their bits, what is found, and whose modules they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GlmConfig,
    LlamaConfig,
    Olmo2Config,
    Qwen3Config,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3MLP

import glimprouter as gr
import hf_pairs
from device_pairs import DEVICES, pair_of, written
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.fused_operations import DeviceOperations
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.pair.devices import torch_device
from tiny_models import LAYERS, assert_untouched, counted, logits_of, placed, tiny

pytestmark = [pytest.mark.device, pytest.mark.needs_device]
TYPES = (torch.float32, torch.bfloat16, torch.float16)
on_devices = pytest.mark.parametrize("device", DEVICES)
in_types = pytest.mark.parametrize("dtype", TYPES, ids=str)
# What is found: an attention and an MLP a layer, and the norms that do not come with a rotation; in
# the narrow types linear layers, but for gates and what they let through.
LINEAR = 1 + 5 * LAYERS
FAMILIES = {
    "llama": (LlamaConfig, 1 + 4 * LAYERS, LINEAR),
    "qwen3": (Qwen3Config, 1 + 4 * LAYERS, LINEAR),
    "gemma2": (Gemma2Config, 1 + 6 * LAYERS, LINEAR),
    "gemma3": (Gemma3TextConfig, 1 + 6 * LAYERS, LINEAR),
    # Its norms of queries are of all heads at once.
    "olmo2": (Olmo2Config, 1 + 6 * LAYERS, LINEAR),
    # Interleaved embeddings, norms that subtract the mean.
    "cohere": (CohereConfig, LAYERS, LINEAR),
    "glm": (GlmConfig, 1 + 2 * LAYERS, LINEAR + LAYERS),
}


@in_types
@pytest.mark.parametrize("family", FAMILIES)
@on_devices
def test_what_a_model_has_is_found_and_computes_the_same(
    device: str, family: str, dtype: torch.dtype
) -> None:
    config_class, count, linear = FAMILIES[family]
    model = placed(tiny(config_class), device, dtype)
    fused = FusedLayers(model, device)
    assert len(fused) == count + (0 if dtype is torch.float32 else linear)
    most = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for ids in (list(range(1, 24)), [1, 2, 3]):
        want, got = (logits_of(model, device, own, ids) for own in (None, fused))
        assert (got - want).float().abs().max() <= most * want.float().std()


@on_devices
def test_what_computes_something_else_is_left_alone(device: str) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)

    class Clipped(Qwen3MLP):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gated = self.act_fn(self.gate_proj(x)).clamp(max=2.0) * self.up_proj(x)
            result: torch.Tensor = self.down_proj(gated)
            return result

    class Swapped(Qwen3MLP):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gated = self.act_fn(self.up_proj(x)) * self.gate_proj(x)
            result: torch.Tensor = self.down_proj(gated)
            return result

    def fuses(changed: Any) -> bool:
        mlp = changed.model.layers[0].mlp
        with FusedLayers(changed, device).installed():
            return "forward" in vars(mlp)

    assert fuses(model)
    for kind in (Clipped, Swapped):
        changed = copy.deepcopy(model)
        changed.model.layers[0].mlp.__class__ = kind
        assert not fuses(changed)
    changed = copy.deepcopy(model)
    changed.model.layers[0].mlp.act_fn = torch.nn.GELU()
    assert not fuses(changed)
    gated = copy.deepcopy(model)
    original = type(gated.model.layers[0].self_attn)

    class Peeking(original):  # type: ignore[misc,valid-type]
        """Uses what a norm gives once more, beside the rotation: then it cannot be postponed."""

    source = original.forward
    norm = gated.model.layers[0].self_attn.q_norm

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        result, weights = source(self, *arguments, **options)
        hidden = options["hidden_states"]
        heads = self.q_proj(hidden).view(*hidden.shape[:-1], -1, self.head_dim)
        return result * self.q_norm(heads).mean(), weights

    Peeking.forward = forward
    gated.model.layers[0].self_attn.__class__ = Peeking
    fused = FusedLayers(gated, device)
    with fused.installed():
        assert "forward" in vars(norm), "by itself"
        assert "forward" not in vars(gated.model.layers[0].self_attn)
    want, got = (logits_of(gated, device, own, [1, 2, 3]) for own in (None, fused))
    assert (got - want).float().abs().max() <= 0.1 * want.float().std()


class Scaling(Qwen3DecoderLayer):  # type: ignore[misc]
    """Weighs what it adds."""

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
        attended = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)[0]
        total = hidden_states + 0.5 * attended
        result: torch.Tensor = total + self.mlp(self.post_attention_layernorm(total))
        return result


class Masking(Qwen3DecoderLayer):  # type: ignore[misc]
    """Does not hand its attention what it was given."""

    def forward(
        self, hidden_states: torch.Tensor, position_ids: Any = None, **options: Any
    ) -> torch.Tensor:
        options["position_ids"] = None
        return super().forward(hidden_states, **options)  # type: ignore[no-any-return]


class Keeping(Qwen3DecoderLayer):  # type: ignore[misc]
    """Adds to what came, not to what it has become."""

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
        attended = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)[0]
        total = hidden_states + attended
        result: torch.Tensor = hidden_states + self.mlp(self.post_attention_layernorm(total))
        return result


@pytest.mark.parametrize("kind", [Scaling, Masking, Keeping])
@on_devices
def test_layers_that_add_otherwise_are_left_alone(device: str, kind: Any) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)
    layers = model.model.layers
    layers[0].__class__ = kind
    fused = FusedLayers(model, device)
    with fused.installed():
        assert "forward" not in vars(layers[0])
        assert "forward" in vars(layers[0].post_attention_layernorm)
        assert "forward" in vars(layers[1])
    want, got = (logits_of(model, device, own, [1, 2, 3]) for own in (None, fused))
    assert (got - want).float().abs().max() <= 0.1 * want.float().std()


@on_devices
def test_norms_of_queries_and_keys_come_with_the_rotation(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)
    fused = FusedLayers(model, device)
    calls = {"norm": 0, "rotate": 0, "add_norm": 0}
    for name in calls:
        own = getattr(DeviceOperations, name)

        def counting(*arguments: Any, name: str = name, own: Any = own, **options: Any) -> Any:
            calls[name] += 1
            return own(*arguments, **options)

        monkeypatch.setattr(DeviceOperations, name, counting)
    logits_of(model, device, fused, [1, 2, 3])
    assert calls == {"norm": 1 + LAYERS, "rotate": LAYERS, "add_norm": LAYERS}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "mlp",
        "mlp.act_fn",
        "mlp.gate_proj",
        "mlp.down_proj",
        "self_attn",
        "self_attn.q_norm",
        "input_layernorm",
        "post_attention_layernorm",
    ],
)
@on_devices
def test_hooks_of_the_user_fire_in_passes_and_not_in_trials(device: str, name: str) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)
    kv_layout(model)  # looks at its layers, once
    before = FusedLayers(model, device)
    want = logits_of(model, device, before, [1, 2, 3])
    with counted(model.model.layers[1].get_submodule(name)) as calls:
        fused = FusedLayers(model, device)
        assert calls == []
        for own in (before, fused):
            calls.clear()
            got = logits_of(model, device, own, [1, 2, 3])
            assert calls == ["before", "after"]
            assert (got - want).float().abs().max() <= 0.1 * want.float().std()
    assert_untouched(model)


@on_devices
def test_weights_are_read_at_each_pass(device: str) -> None:
    model = placed(tiny(Qwen3Config), device, torch.float32)
    fused = FusedLayers(model, device)
    layer = model.model.layers[0]
    with torch.no_grad():
        model.model.norm.weight += 1.0
        layer.self_attn.k_norm.weight *= 1.5
    layer.self_attn.q_norm.weight = torch.nn.Parameter(
        torch.full_like(layer.self_attn.q_norm.weight, 0.5)
    )
    layer.self_attn.q_norm.variance_epsilon = 0.1
    layer.mlp.up_proj = copy.deepcopy(layer.mlp.up_proj)
    with torch.no_grad():
        layer.mlp.up_proj.weight *= 2.0
    want = logits_of(model, device, None, [1, 2, 3])
    assert (logits_of(model, device, fused, [1, 2, 3]) - want).abs().max() <= 1e-5 * want.std()


@on_devices
def test_a_model_that_changed_its_type_computes_as_before(device: str) -> None:
    model = placed(tiny(Qwen3Config), device, torch.float32)
    fused = FusedLayers(model, device)
    model.double()
    hidden = torch.randn(1, 3, 64, dtype=torch.float64, device=torch_device(device))
    with fused.installed(), torch.inference_mode():
        mlp, norm = model.model.layers[0].mlp, model.model.norm
        assert torch.equal(mlp(hidden), type(mlp).forward(mlp, hidden))
        assert torch.equal(norm(hidden), type(norm).forward(norm, hidden))
    assert_untouched(model)


@on_devices
def test_not_in_training_mode_and_not_over_a_forward_of_somebody_else(device: str) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)
    fused = FusedLayers(model, device)
    model.train()
    with fused.installed():
        assert_untouched(model)
    model.eval()
    layer = model.model.layers[0]
    before = logits_of(model, device, fused, [1, 2, 3])
    foreign = {}
    for module in (layer.mlp, layer.self_attn.q_norm, layer.mlp.act_fn):
        own = type(module).forward
        foreign[module] = lambda *a, own=own, module=module, **b: 0.5 * own(module, *a, **b)
        module.forward = foreign[module]
    want = logits_of(model, device, None, [1, 2, 3])
    assert not torch.allclose(want, before)
    got = logits_of(model, device, fused, [1, 2, 3])
    assert (got - want).float().abs().max() <= 0.1 * want.float().std()
    assert all(module.forward is forward for module, forward in foreign.items())
    with FusedLayers(model, device).installed():
        assert all(module.forward is forward for module, forward in foreign.items())


@on_devices
def test_adapters_keep_their_own_code(device: str) -> None:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(tiny(Qwen3Config), config).get_base_model().eval()
    placed(model, device, torch.float32)
    fused = FusedLayers(model, device)
    want, got = (logits_of(model, device, own, [1, 2, 3]) for own in (None, fused))
    assert (got - want).abs().max() <= 1e-5 * want.std()
    assert_untouched(model)


@on_devices
def test_a_model_that_is_elsewhere_has_none(device: str) -> None:
    assert len(FusedLayers(tiny(Qwen3Config).to("meta"), device)) == 0
    assert len(FusedLayers(placed(tiny(Qwen3Config), device, torch.float64), device)) == 0


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("qwen3", torch.float32),
        ("gemma3", torch.bfloat16),
        ("llama", torch.bfloat16),
        ("llama", torch.float32),
    ],
    ids=str,
)
@on_devices
def test_a_pair_writes_what_it_writes_without_them(
    device: str, family: str, dtype: torch.dtype
) -> None:
    if dtype is torch.bfloat16 and device.startswith("cuda"):
        pytest.skip("sums of products in another order turn near ties there")
    pair = pair_of(family)
    models = [placed(copy.deepcopy(own), device, dtype) for own in (pair.small, pair.large)]
    options = {"temperature": 0.0, "repetition_guard": False, "max_step_tokens": 6}
    config = gr.RouterConfig(
        threshold=pair.threshold, max_think_tokens=20, max_answer_tokens=4, **options
    )
    results = []
    runs: list[tuple[bool, Any]] = [(False, "eager"), (True, "eager"), (True, "graphs")]
    for fuses, execution in runs:
        routed = RoutedModel(
            *models,
            pair.tokenizer,
            config,
            engine="paged",
            device=device,
            execution=execution,
            fused_layers=fuses,
            drafts=0,
        )
        assert bool(routed.fused) == fuses
        results.append(written(routed.generate(pair.prompts[:2])))
    assert results == [results[0]] * 3
    for model in models:
        assert_untouched(model)


@on_devices
def test_the_reference_has_none(device: str) -> None:
    pair = hf_pairs.random_pair("qwen3")
    models = [placed(copy.deepcopy(own), device, torch.float32) for own in (pair.small, pair.large)]
    routed = RoutedModel(*models, pair.tokenizer, engine="gather", device=device)
    assert not routed.fused
