"""Whose passes are native calls, and until when: models of other code, and models that change."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    SmolLM3Config,
)
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM, LlamaMLP

from decoder_rows import found, prompts_of, whole
from glimprouter.hf.decoder import host_pass
from glimprouter.hf.decoder.host_pass import find_host_pass
from glimprouter.hf.decoder.parts import OtherModel, find_parts
from glimprouter.hf.engine.choice import choose_engine
from hf_pairs import trained_pair
from tiny_models import tiny

ON_CPU = {"small": "cpu", "large": "cpu"}
ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
# By their modules, classes and configuration.
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "norms behind": (Gemma2Config, {}),
    "multipliers": (GraniteConfig, {"embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "layers without positions": (SmolLM3Config, {}),
    "a bias beside the residual": (LlamaConfig, {"attention_bias": True}),
    "rows of odd sizes": (LlamaConfig, {"intermediate_size": 100}),
    "angles by length": (LlamaConfig, {"rope_parameters": ROPE}),
    "another activation": (LlamaConfig, {"hidden_act": "gelu_pytorch_tanh"}),
}
# By what they compute.
UNLIKE: dict[str, tuple[Any, dict[str, Any]]] = {
    "a window": (MistralConfig, {"sliding_window": 32}),
    "a window that no trial fills": (MistralConfig, {"sliding_window": 100}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_another_decoder_is_left_alone(name: str) -> None:
    config_class, options = OTHERS[name]
    model = tiny(config_class, **options)
    with pytest.raises(OtherModel):
        find_parts(model)
    assert find_host_pass(model) is None


@pytest.mark.parametrize("name", UNLIKE)
def test_what_computes_something_else_is_left_alone(name: str) -> None:
    config_class, options = UNLIKE[name]
    model = tiny(config_class, **options)
    assert len(find_parts(model).layers) == 2
    assert find_host_pass(model) is None
    fused = choose_engine("auto", {"small": model, "large": model}, ON_CPU).fused
    assert fused["small"].whole is None  # and its layers are fused all the same
    assert len(fused["small"]) > 0


def _own_class(model: Any) -> None:
    model.__class__ = type("Own", (LlamaForCausalLM,), {})


def _own_attention(model: Any) -> None:
    own = type("Own", (LlamaAttention,), {"__module__": "somewhere"})
    model.model.layers[1].self_attn.__class__ = own


def _patched_before(model: Any) -> None:
    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        return before(self, *arguments, **options)

    before = LlamaAttention.forward
    own = type("Own", (LlamaAttention,), {"__module__": LlamaAttention.__module__})
    own.forward = forward  # type: ignore[attr-defined]
    model.model.layers[1].self_attn.__class__ = own


def _wrapped_before(model: Any) -> None:
    """It says of itself that it is of transformers."""
    own = type("Own", (LlamaAttention,), {"__module__": LlamaAttention.__module__})
    before = LlamaAttention.forward
    wrapped: Any = functools.wraps(before)(lambda *a, **o: before(*a, **o))
    own.forward = wrapped  # type: ignore[attr-defined]
    model.model.layers[1].self_attn.__class__ = own


def _layers_in_another_order(model: Any) -> None:
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))


def _zeros(model: Any) -> None:
    """With these no trial sees the activation."""
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        layer.mlp.act_fn = torch.nn.ReLU()


def _bounded_embedding(model: Any) -> None:
    model.model.embed_tokens.max_norm = 1.0


def _forward_of_its_own(model: Any) -> None:
    model.model.norm.forward = lambda hidden: hidden


@pytest.mark.parametrize(
    "change",
    [
        _forward_of_its_own,
        _own_class,
        _own_attention,
        _patched_before,
        _wrapped_before,
        _layers_in_another_order,
        _zeros,
        _bounded_embedding,
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.train(),
    ],
)
def test_a_model_of_other_code_or_type_is_left_alone(change: Callable[[Any], Any]) -> None:
    model = tiny(LlamaConfig)
    find_parts(model)
    change(model)
    with pytest.raises(OtherModel):
        find_parts(model)
    assert find_host_pass(model) is None


def test_a_pair_has_it_unless_told_otherwise() -> None:
    pair = trained_pair()
    models = {"small": pair.small, "large": pair.large}
    fused = choose_engine("auto", models, ON_CPU).fused
    assert [name for name, each in fused.items() if each.whole is not None] == ["small", "large"]
    assert not choose_engine("auto", models, ON_CPU, fuse=False).fused


def _hooked(model: Any) -> Callable[[], None]:
    return model.model.layers[1].mlp.register_forward_hook(lambda *_: None).remove  # type: ignore[no-any-return]


def _globally_hooked(model: Any) -> Callable[[], None]:
    return torch.nn.modules.module.register_module_forward_hook(lambda *_: None).remove


def _replaced(model: Any) -> Callable[[], None]:
    mlp = model.model.layers[0].mlp
    before, mlp.up_proj = mlp.up_proj, torch.nn.Linear(64, 96, bias=False)

    def undo() -> None:
        mlp.up_proj = before

    return undo


def _set(holder: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    return lambda: setattr(holder, name, before)


def _other_weights(model: Any) -> Callable[[], None]:
    weight = model.model.layers[0].self_attn.o_proj.weight
    return _set(weight, "data", weight.data.clone())


def _another_view(model: Any) -> Callable[[], None]:
    weight = model.model.layers[0].self_attn.o_proj.weight
    return _set(weight, "data", weight.data.T)


def _fewer_tokens(model: Any) -> Callable[[], None]:
    return _set(model.lm_head.weight, "data", model.lm_head.weight.data[:90])


def _another_parameter(model: Any) -> Callable[[], None]:
    own = model.model.layers[0].self_attn.o_proj
    return _set(own, "weight", torch.nn.Parameter(own.weight.detach().clone()))


def _other_frequencies(model: Any) -> Callable[[], None]:
    frequencies = model.model.rotary_emb.inv_freq
    frequencies.mul_(0.5)

    def undo() -> None:
        frequencies.mul_(2.0)

    return undo


def _own_forward(model: Any) -> Callable[[], None]:
    norm = model.model.norm
    norm.forward = lambda hidden: hidden

    def undo() -> None:
        del norm.forward

    return undo


def _patched_class(model: Any) -> Callable[[], None]:
    before = LlamaAttention.forward
    return _set(LlamaAttention, "forward", lambda *a, **o: before(*a, **o))


def _patched_function(model: Any) -> Callable[[], None]:
    return _set(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *rest: (q, k))


def _other_class(model: Any) -> Callable[[], None]:
    return _set(model.model.layers[0].mlp, "__class__", type("Own", (LlamaMLP,), {}))


def _training(model: Any) -> Callable[[], None]:
    model.train()
    return lambda: model.eval() and None


def _entered(context: Any) -> Callable[[], None]:
    context.__enter__()
    return lambda: context.__exit__(None, None, None)


CHANGES: dict[str, Callable[[Any], Callable[[], None]]] = {
    "a hook": _hooked,
    "a hook of all modules": _globally_hooked,
    "another module": _replaced,
    "other weights": _other_weights,
    "another view of the weights": _another_view,
    "fewer tokens": _fewer_tokens,
    "another parameter": _another_parameter,
    "other frequencies": _other_frequencies,
    "a forward": _own_forward,
    "a class's forward": _patched_class,
    "a function": _patched_function,
    "another class": _other_class,
    "training": _training,
    "training of a part": lambda model: _set(model.model.layers[0].self_attn, "training", True),
    "an epsilon": lambda model: _set(model.model.norm, "variance_epsilon", 1e-3),
    "another rotation": lambda model: _set(model.model.rotary_emb, "rope_type", "dynamic"),
    "a bound": lambda model: _set(model.model.embed_tokens, "max_norm", 1.0),
    "another number": lambda model: _set(model.model.layers[0].self_attn, "layer_idx", 1),
    "other children": lambda model: _set(model.model, "_modules", dict(model.model._modules)),
    "torch's own": lambda model: _set(torch.nn.functional, "silu", torch.nn.functional.relu),
    "a scale": lambda model: _set(model.model.layers[1].self_attn, "scaling", 0.5),
    "fewer layers": lambda model: _set(model.config, "num_hidden_layers", 1),
    "new hooks": lambda model: _set(model.model, "_forward_hooks", {1: print}),
    "autocast": lambda model: _entered(torch.autocast("cpu", torch.bfloat16)),
    "a mode": lambda model: _entered(torch.overrides.TorchFunctionMode()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_watched_or_changed_runs_its_own_code(change: str) -> None:
    model = tiny(LlamaConfig)
    own = found(model)
    undo = CHANGES[change](model)
    try:
        assert not own.takes(1)
    finally:
        undo()
    assert own.takes(1)


def test_weights_that_change_in_place_are_what_counts() -> None:
    model = tiny(LlamaConfig)
    own, prompts = found(model), prompts_of([9])
    before = whole(model, own, prompts)[0]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    assert own.takes(1)
    with torch.inference_mode():
        want = model(torch.tensor(prompts)).logits[0]
    got = whole(model, own, prompts)[0]
    assert (got - want).abs().max() <= 1e-4 * want.std()
    assert (got - before).abs().max() > 1e-2 * want.std()


def test_much_work_waits_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's products run on its threads, those of the native pass on the library's."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    own = found(tiny(LlamaConfig))
    assert own.takes(1000)
    assert not own.takes(1_000_000)
    monkeypatch.setattr(host_pass._C, "get_num_threads", lambda: 4)
    assert own.takes(1_000_000)


def test_the_default_type_of_the_process_is_none_of_its_business() -> None:
    model = tiny(LlamaConfig)
    own, prompts = found(model), prompts_of([9])
    want = whole(model, own, prompts)[0]
    own = found(model)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(whole(model, own, prompts)[0], want)
    finally:
        torch.set_default_dtype(torch.float32)
