"""Models that were changed after their layers were tried, or have limits that a trial must see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3MLP

from device_pairs import DEVICES
from glimprouter.hf.attention.fused_layers import FusedLayers
from tiny_models import logits_of, placed, tiny

pytestmark = [pytest.mark.device, pytest.mark.needs_device]
on_devices = pytest.mark.parametrize("device", DEVICES)
IDS = [3, 1, 4, 1, 5]


def qwen3(device: str) -> Any:
    return placed(tiny(Qwen3Config), device, torch.bfloat16)


def assert_same(model: Any, device: str, fused: FusedLayers) -> None:
    """As its own code, but for sums in another order."""
    want, got = (logits_of(model, device, own, IDS).float() for own in (None, fused))
    assert (got - want).abs().max() <= 0.1 * want.std()


class LimitedGate(Qwen3MLP):  # type: ignore[misc]
    """As Step 3.7: the activation and what it is multiplied by have limits."""

    limit = 16.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(x)).clamp(max=self.limit) * self.up_proj(x)
        result: torch.Tensor = self.down_proj(gated)
        return result


class LimitedRows(Qwen3MLP):  # type: ignore[misc]
    """Limits what is let through, alone."""

    limit = 40.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x).clamp(-self.limit, self.limit)
        result: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * up)
        return result


@pytest.mark.parametrize("limit", [2.0, 16.0, 100.0, 400.0])
@pytest.mark.parametrize("kind", [LimitedGate, LimitedRows])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@on_devices
def test_limits_of_an_mlp_are_seen(
    device: str, dtype: torch.dtype, kind: Any, limit: float
) -> None:
    model = placed(tiny(Qwen3Config), device, dtype)
    mlp = model.model.layers[0].mlp
    with FusedLayers(model, device).installed():
        assert "forward" in vars(mlp)
    mlp.__class__ = type("Limited", (kind,), {"limit": limit})
    with FusedLayers(model, device).installed():
        assert "forward" not in vars(mlp)


@on_devices
def test_limits_of_a_layer_are_seen(device: str) -> None:
    model = qwen3(device)
    own = Qwen3DecoderLayer.forward

    def forward(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        result: torch.Tensor = own(self, *arguments, **options)
        return result.clamp(-50.0, 50.0)

    layer = model.model.layers[0]
    with FusedLayers(model, device).installed():
        assert "forward" in vars(layer)
    layer.__class__ = type("Limited", (Qwen3DecoderLayer,), {"forward": forward})
    with FusedLayers(model, device).installed():
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
@on_devices
def test_a_norm_that_was_replaced(device: str, name: str) -> None:
    model = qwen3(device)
    fused = FusedLayers(model, device)
    attention = model.model.layers[0].self_attn
    before = logits_of(model, device, fused, IDS)
    other = copy.deepcopy(getattr(attention, name))
    with torch.no_grad():
        other.weight.mul_(torch.linspace(-4, 4, len(other.weight), device=other.weight.device))
    setattr(attention, name, other)
    assert_same(model, device, fused)
    assert not torch.equal(logits_of(model, device, fused, IDS), before)


@on_devices
def test_an_activation_that_was_replaced(device: str) -> None:
    model = qwen3(device)
    fused = FusedLayers(model, device)
    before = logits_of(model, device, fused, IDS)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    assert_same(model, device, fused)
    assert not torch.equal(logits_of(model, device, fused, IDS), before)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
@on_devices
def test_hooks_before_a_product(device: str, name: str) -> None:
    """They change what comes, in place, or the weight for the length of the call."""
    model = qwen3(device)
    fused = FusedLayers(model, device)
    before = logits_of(model, device, fused, IDS)
    linear = getattr(model.model.layers[1].self_attn, name)
    own = linear.weight.data.clone()

    def add(_: Any, arguments: Any) -> None:
        arguments[0].add_(1.0)

    def swap(module: Any, _: Any) -> None:
        module.weight.data.copy_(own.flip(0))

    def restore(module: Any, *_: Any) -> None:
        module.weight.data.copy_(own)

    for hooks in ((add, None), (swap, restore)):
        handles = [linear.register_forward_pre_hook(hooks[0])]
        if hooks[1] is not None:
            handles.append(linear.register_forward_hook(hooks[1]))
        assert_same(model, device, fused)
        assert not torch.equal(logits_of(model, device, fused, IDS), before)
        for handle in handles:
            handle.remove()
