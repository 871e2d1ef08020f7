"""Each kernel of fused layers once, by few launches: what compute-sanitizer has time for."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from device_pairs import DEVICES
from glimprouter.hf.attention.fused_operations import DeviceOperations, Norm, NormForm, agrees
from glimprouter.hf.attention.fused_products import MOST_ROWS
from glimprouter.hf.pair.devices import torch_device
from tiny_models import random

pytestmark = [pytest.mark.device, pytest.mark.needs_device]
on_devices = pytest.mark.parametrize("device", DEVICES)
FORM, EPSILON = NormForm(0.0, True), 1e-6
TYPE = torch.bfloat16


def norm_of(device: str, width: int) -> Qwen3RMSNorm:
    norm = Qwen3RMSNorm(width, eps=EPSILON).to(torch_device(device), TYPE)
    norm.weight.data = random(device, TYPE, width, seed=2)
    return norm


@on_devices
def test_norms_small_case(device: str) -> None:
    operations, own = DeviceOperations(device), norm_of(device, 520)
    hidden, added = (random(device, TYPE, 1, 3, 520, seed=seed) for seed in (0, 1))
    assert agrees(operations.norm(hidden, own.weight, EPSILON, FORM), own(hidden))
    total, out = operations.add_norm(hidden, added, Norm(own.weight, EPSILON, FORM))
    assert torch.equal(total, hidden + added)
    assert agrees(out, own(hidden + added))


@on_devices
def test_rotations_and_activations_small_case(device: str) -> None:
    operations = DeviceOperations(device)
    norms = [norm_of(device, 128) for _ in range(2)]
    present = tuple(Norm(norm.weight, EPSILON, FORM) for norm in norms)
    heads = [random(device, TYPE, 1, 3, count, 128, seed=count) for count in (4, 2)]
    cosine, sine = random(device, TYPE, 2, 1, 3, 128, seed=2)
    plain = [part.transpose(1, 2) for part in heads]
    got = operations.rotate(*plain, cosine, sine, present)  # type: ignore[arg-type]
    normed = [norm(part).transpose(1, 2) for norm, part in zip(norms, heads, strict=True)]
    want = apply_rotary_pos_emb(*normed, cosine, sine)
    for ours, theirs in zip(got, want, strict=True):  # a norm may be another by its last bit
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.05)
    gate, up = random(device, TYPE, 2, 5, 77)
    assert agrees(operations.activate(gate, up, "silu"), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("rows", [1, MOST_ROWS])
@on_devices
def test_products_small_case(device: str, rows: int) -> None:
    """Three matrices that share their rows, with something added; and a gate."""
    operations = DeviceOperations(device)
    hidden = random(device, TYPE, 1, rows, 520)
    weights = [random(device, TYPE, count, 520, seed=count) for count in (40, 24, 17)]
    added = random(device, TYPE, 1, rows, 40, seed=1)
    got = operations.multiply(hidden, weights, [None] * 3, added=added)
    alone = [operations.multiply(hidden, [weight], [None])[0] for weight in weights]
    assert torch.equal(got[0], added + alone[0])
    assert all(map(torch.equal, got[1:], alone[1:]))
    for own, weight in zip(alone, weights, strict=True):
        exact = hidden.double() @ weight.double().T
        error = (own.double() - exact).abs().max()
        assert error <= torch.finfo(TYPE).eps * exact.abs().max()
    gated = operations.multiply(hidden, [weights[0]] * 2, [None] * 2, "silu")[0]
    assert torch.equal(gated, operations.activate(alone[0], alone[0], "silu"))
