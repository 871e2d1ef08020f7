"""Norms, rotations and activations on a device: the bits of torch, but for the order of a sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from device_pairs import DEVICES
from glimprouter import _C
from glimprouter.hf.attention.fused_operations import DeviceOperations, Norm, NormForm, agrees
from glimprouter.hf.pair.devices import torch_device
from tiny_models import random

pytestmark = [pytest.mark.device, pytest.mark.needs_device]
TYPES = (torch.float32, torch.bfloat16, torch.float16)
on_devices = pytest.mark.parametrize("device", DEVICES)
in_types = pytest.mark.parametrize("dtype", TYPES, ids=str)


@in_types
@pytest.mark.parametrize("width", [8, 80, 512, 520, 2560])
@pytest.mark.parametrize(
    ("kind", "offset", "in_type"), [(Qwen3RMSNorm, 0.0, True), (Gemma3RMSNorm, 1.0, False)]
)
@on_devices
def test_a_norm_is_the_models_own(
    device: str, kind: Any, offset: float, in_type: bool, width: int, dtype: torch.dtype
) -> None:
    norm = kind(width, eps=1e-6).to(torch_device(device), dtype)
    norm.weight.data = random(device, dtype, width, seed=2)
    rows = random(device, dtype, 2, 3, 2, width)
    operations = DeviceOperations(device)
    for hidden in (rows, rows.transpose(1, 2), rows[:, 1:]):
        got = operations.norm(hidden, norm.weight, 1e-6, NormForm(offset, in_type))
        assert agrees(got, norm(hidden))
    other = operations.norm(rows, norm.weight, 1e-6, NormForm(0.0, not in_type))
    assert dtype is torch.float32 or not agrees(other, norm(rows))


@in_types
@pytest.mark.parametrize("width", [80, 520])
@on_devices
def test_a_sum_is_normed_as_one_after_the_other(
    device: str, width: int, dtype: torch.dtype
) -> None:
    hidden, added = random(device, dtype, 1, 5, width), random(device, dtype, 1, 5, width, seed=1)
    weight, operations = random(device, dtype, width, seed=2), DeviceOperations(device)
    form = NormForm(0.0, dtype is not torch.float32)
    total, out = operations.add_norm(hidden, added, Norm(weight, 1e-6, form))
    assert torch.equal(total, hidden + added)
    assert torch.equal(out, operations.norm(hidden + added, weight, 1e-6, form))


@in_types
@pytest.mark.parametrize("size", [2, 64, 80, 96, 128, 256])
@on_devices
def test_rotary_embeddings_have_the_bits_of_torch(
    device: str, size: int, dtype: torch.dtype
) -> None:
    queries = random(device, dtype, 2, 3, 4, size).transpose(1, 2)
    keys = random(device, dtype, 2, 3, 2, size, seed=1).transpose(1, 2)
    for batch in (1, 2):
        cosine, sine = random(device, dtype, 2, batch, 3, size, seed=2)
        got = DeviceOperations(device).rotate(queries, keys, cosine, sine)
        want = apply_rotary_pos_emb(queries, keys, cosine, sine)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


@in_types
@pytest.mark.parametrize(("name", "theirs"), [("silu", "silu"), ("gelu_tanh", "gelu_pytorch_tanh")])
@on_devices
def test_activations_are_torchs(device: str, name: str, theirs: str, dtype: torch.dtype) -> None:
    gate, up = 3 * random(device, dtype, 2, 5, 77), random(device, dtype, 2, 5, 77, seed=1)
    got = DeviceOperations(device).activate(gate, up, name)
    assert agrees(got, ACT2FN[theirs](gate) * up)
    assert not agrees(got, ACT2FN["gelu"](gate) * up)


@on_devices
def test_arguments_are_checked(device: str) -> None:
    layers = _C.DeviceLayers(device)
    rows, weight = random(device, torch.float32, 3, 8), random(device, torch.float32, 8)
    out = torch.full_like(rows, 7.0)
    norm: Callable[..., None] = layers.norm
    for arguments, error, message in (
        ((rows, weight.half(), 1e-6, 0.0, True, out), TypeError, "weight must have the type"),
        ((rows, weight[:7], 1e-6, 0.0, True, out), ValueError, "weight must have one dimension"),
        ((rows, weight, -1.0, 0.0, True, out), ValueError, "epsilon must be >= 0"),
        ((rows, weight, 1e-6, 0.0, True, out.T), ValueError, "out must be contiguous along"),
        ((rows, weight, 1e-6, 0.0, True, out[:2]), ValueError, "out must be contiguous, of the"),
        ((rows.double(), weight, 1e-6, 0.0, True, out), TypeError, "hidden must be float32"),
        ((rows[:, :0], weight[:0], 1e-6, 0.0, True, out[:, :0]), ValueError, "1 to 16384"),
        ((rows.to("meta"), weight, 1e-6, 0.0, True, out), ValueError, "hidden"),
    ):
        with pytest.raises(error, match=message):
            norm(*arguments)
    heads, angles = (
        random(device, torch.float32, 1, 2, 3, 8),
        random(device, torch.float32, 1, 3, 8),
    )
    copies = heads.clone(), heads.clone()
    rotate: Callable[..., None] = layers.rotate
    for arguments, message in (
        ((heads, heads, angles[:, :2], angles, *copies, None, None), "cosine and sine must have"),
        ((heads, heads[:, :, :2], angles, angles, *copies, None, None), "keys_out must be"),
        (
            (heads[0], heads, angles, angles, *copies, None, None),
            r"queries and keys must be \[batch",
        ),
        ((heads, heads, angles, angles, *copies, (weight[:4], 1e-6, 0.0, True), None), "weight"),
    ):
        with pytest.raises(ValueError, match=message):
            rotate(*arguments)
    with pytest.raises(ValueError, match='must be "silu" or "gelu_tanh"'):
        layers.activate(rows, rows, "relu", out)
    with pytest.raises(ValueError, match="toaster"):
        _C.DeviceLayers("toaster:0")
    assert (out == 7.0).all()
