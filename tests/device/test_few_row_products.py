"""Products of a few rows on a device: their errors and bits, and whose layers they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config

from device_pairs import DEVICES
from glimprouter import _C
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.fused_operations import DeviceOperations
from glimprouter.hf.attention.fused_products import MOST_ROWS, FewRowProducts, ProductGroup
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.pair.devices import torch_device
from tiny_models import LAYERS, assert_untouched, counted, logits_of, placed, random, tiny

pytestmark = [pytest.mark.device, pytest.mark.needs_device]
on_devices = pytest.mark.parametrize("device", DEVICES)
in_narrow_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
ADDS = 10  # beside the count of matrices: something is added to the result
FEW, MANY = [1, 2, 3], list(range(1, MOST_ROWS + 4))  # tokens


def linear(device: str, dtype: torch.dtype, size: int, rows: int, **options: Any) -> Any:
    torch.manual_seed(size)
    made = torch.nn.Linear(size, rows, **options).to(torch_device(device), dtype)
    return made.requires_grad_(False)


def products_of(device: str, dtype: torch.dtype, *linears: Any) -> FewRowProducts:
    products = FewRowProducts(DeviceOperations(device), dtype)
    assert products.learn(*linears)
    return products


@in_narrow_types
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("size", "rows"), [(8, 1), (64, 17), (520, 96), (2560, 40)])
@on_devices
def test_errors_are_no_larger_than_torchs(
    device: str, size: int, rows: int, bias: bool, dtype: torch.dtype
) -> None:
    layer = linear(device, dtype, size, rows, bias=bias)
    hidden = random(device, dtype, MOST_ROWS, size)
    exact = torch.nn.functional.linear(
        hidden.double(), layer.weight.double(), layer.bias.double() if bias else None
    )
    ours = products_of(device, dtype, layer).multiply(hidden, (layer,))[0]
    errors = [(own.double() - exact).square().mean().sqrt() for own in (ours, layer(hidden))]
    assert ours.dtype is dtype
    assert errors[0] <= 1.25 * errors[1] + 1e-6
    assert (ours.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@in_narrow_types
@on_devices
def test_a_row_has_the_same_bits_in_any_batch_and_beside_any_layer(
    device: str, dtype: torch.dtype
) -> None:
    layers = [linear(device, dtype, 200, rows) for rows in (40, 24, 17)]
    products = products_of(device, dtype, *layers)
    hidden = random(device, dtype, 1, MOST_ROWS, 200)
    want = products.multiply(hidden, layers)
    for count in range(1, MOST_ROWS + 1):
        part = hidden[:, :count]
        for layer, expected in zip(layers, want, strict=True):
            got = products.multiply(part, (layer,))[0]
            assert torch.equal(got, expected[:, :count])


@in_narrow_types
@on_devices
def test_a_residual_is_added_to_the_rounded_result(device: str, dtype: torch.dtype) -> None:
    layer = linear(device, dtype, 200, 40)
    products = products_of(device, dtype, layer)
    hidden, residual = random(device, dtype, 1, 5, 200), random(device, dtype, 1, 5, 40, seed=1)
    got = products.multiply(hidden, (layer,), residual)[0]
    assert torch.equal(got, residual + products.multiply(hidden, (layer,))[0])


@on_devices
def test_a_product_with_larger_errors_is_left_to_torch(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded once too often, or a row that depends on its batch; or no result at all."""
    dtype, own = torch.bfloat16, DeviceOperations.multiply
    layer = linear(device, dtype, 200, 40)

    def coarse(*arguments: Any, **options: Any) -> Any:
        return [(result * 1.01).to(dtype) for result in own(*arguments, **options)]

    def wavering(row: int) -> Any:
        def multiply(self: Any, hidden: Any, *arguments: Any, **options: Any) -> Any:
            results = own(self, hidden, *arguments, **options)
            if len(hidden) > 1:
                results[0][row, 5] = torch.nextafter(results[0][row, 5], results[0][row, 5] + 1)
            return results

        return multiply

    def failing(*_: Any, **__: Any) -> Any:
        raise TypeError("planted")

    for wrong in (coarse, wavering(3), wavering(12), failing):
        monkeypatch.setattr(DeviceOperations, "multiply", wrong)
        assert not FewRowProducts(DeviceOperations(device), dtype).learn(layer)
    monkeypatch.undo()
    assert FewRowProducts(DeviceOperations(device), dtype).learn(layer)


@on_devices
def test_what_is_not_taken(device: str) -> None:
    dtype = torch.bfloat16
    layer = linear(device, dtype, 64, 16)
    products = products_of(device, dtype, layer)
    assert products.takes(random(device, dtype, 2, MOST_ROWS // 2, 64), (layer,))
    for hidden in (
        random(device, dtype, MOST_ROWS + 1, 64),
        random(device, dtype, 2, 64).float(),
        random(device, dtype, 64, 2).T,
        random(device, dtype, 0, 64),
        random(device, dtype, 65)[1:][None],
        random(device, dtype, 2, 56),
    ):
        assert not products.takes(hidden, (layer,))

    class Derived(torch.nn.Linear):
        pass

    class Wrapped(torch.Tensor):
        pass

    derived = Derived(64, 16, bias=False).to(torch_device(device), dtype)
    quantized = linear(device, dtype, 64, 16)
    quantized.weight = torch.nn.Parameter(quantized.weight.as_subclass(Wrapped), False)  # type: ignore[arg-type]
    across = linear(device, dtype, 64, 16)
    across.weight = torch.nn.Parameter(across.weight.T.contiguous().T, False)
    for refused in (
        derived,
        quantized,
        across,
        linear(device, dtype, 60, 16),
        linear(device, torch.float32, 64, 16),
        torch.nn.utils.parametrizations.weight_norm(linear(device, dtype, 64, 16)),
        torch.nn.Identity(),
        None,
    ):
        assert not products.learn(refused)
    assert not products.learn(layer, linear(device, dtype, 72, 16))


@on_devices
def test_arguments_are_checked(device: str) -> None:
    dtype = torch.bfloat16
    multiply = _C.DeviceLayers(device).multiply
    x, weight = random(device, dtype, 3, 64), random(device, dtype, 16, 64)
    out = torch.full((3, 16), 7.0, dtype=dtype, device=x.device)
    many = random(device, dtype, MOST_ROWS + 1, 64)
    for arguments, error, message in (
        ((x.float(), (weight,), (None,), "", None, (out,)), TypeError, "bfloat16 or float16"),
        (
            (x, (weight.half(),), (None,), "", None, (out,)),
            TypeError,
            "a weight must have the type",
        ),
        ((many, (weight,), (None,), "", None, (out,)), ValueError, "up to 16 rows"),
        ((x[:, :60], (weight,), (None,), "", None, (out,)), ValueError, "multiple of 8"),
        (
            (x, (weight[:, :56],), (None,), "", None, (out,)),
            ValueError,
            r"a weight must be \[rows, 64\]",
        ),
        ((x, (), (), "", None, ()), ValueError, "1 to 3 weights"),
        ((x, (weight,), (), "", None, (out,)), ValueError, "as many biases"),
        ((x, (weight,), (None,), "silu", None, (out,)), ValueError, "with an activation two"),
        (
            (x, (weight,), (weight[0],), "", None, (out,)),
            ValueError,
            "a bias must have one dimension",
        ),
        ((x, (weight,), (None,), "", None, (out[:2],)), ValueError, "an out must have the rows"),
        ((x, (weight, weight[:8]), (None,) * 2, "silu", None, (out,)), ValueError, "as many rows"),
        ((x, (weight,), (None,), "", out[:2], (out,)), ValueError, "added must be contiguous, of"),
        ((x, (weight,) * 2, (None,) * 2, "relu", None, (out,)), ValueError, "silu"),
        (
            (random(device, dtype, 65)[1:], (weight,), (None,), "", None, (out[0],)),
            ValueError,
            "16 bytes",
        ),
    ):
        with pytest.raises(error, match=message):
            multiply(*arguments)  # type: ignore[arg-type]
    assert (out == 7.0).all()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    own = DeviceOperations.multiply
    seen: list[int] = []

    def multiply(self: Any, hidden: Any, weights: Any, *others: Any, **options: Any) -> Any:
        seen.append(len(weights) + (ADDS if options.get("added") is not None else 0))
        return own(self, hidden, weights, *others, **options)

    monkeypatch.setattr(DeviceOperations, "multiply", multiply)
    return seen


@in_narrow_types
@on_devices
def test_a_pass_of_few_rows_has_four_products_a_layer(
    device: str, dtype: torch.dtype, launches: list[int]
) -> None:
    model = placed(tiny(Qwen3Config, attention_bias=True), device, dtype)
    fused = FusedLayers(model, device)
    launches.clear()
    want, got = (logits_of(model, device, own, FEW) for own in (None, fused))
    assert launches == [3, 1, 2, ADDS + 1] * LAYERS + [1]
    assert (got - want).float().abs().max() <= 0.1 * want.float().std()
    launches.clear()
    logits_of(model, device, fused, MANY)
    assert launches == [1], "the head alone has few rows"
    assert_untouched(model)


@on_devices
def test_a_hook_sees_its_layer_and_may_change_what_comes(device: str, launches: list[int]) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)
    fused = FusedLayers(model, device)
    layer = model.model.layers[0]
    kv_layout(model)  # looks at its layers, once
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        with counted(layer.self_attn.get_submodule(name)) as calls:
            logits_of(model, device, fused, FEW)
            assert calls == ["before", "after"], name
    before = logits_of(model, device, fused, FEW)
    changing = layer.self_attn.v_proj.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    want, got = (logits_of(model, device, own, FEW) for own in (None, fused))
    changing.remove()
    assert (want - before).float().abs().max() > 0.2 * want.float().std()
    assert (got - want).float().abs().max() <= 0.1 * want.float().std()


@on_devices
def test_weights_are_read_at_each_pass(device: str) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)
    fused = FusedLayers(model, device)
    layer = model.model.layers[1]
    before = logits_of(model, device, fused, FEW)
    with torch.no_grad():
        layer.self_attn.v_proj.weight *= 3.0
        layer.mlp.up_proj.weight *= 2.0
    layer.mlp.down_proj.weight = torch.nn.Parameter(-layer.mlp.down_proj.weight, False)
    want, got = (logits_of(model, device, own, FEW) for own in (None, fused))
    assert (want - before).float().abs().max() > 0.2 * want.float().std()
    assert (got - want).float().abs().max() <= 0.1 * want.float().std()


@on_devices
def test_layers_that_became_something_else_compute_as_that(
    device: str, launches: list[int]
) -> None:
    model = placed(tiny(Qwen3Config), device, torch.bfloat16)
    fused = FusedLayers(model, device)
    model.float()
    launches.clear()
    with fused.installed(), torch.inference_mode():
        for name, module in model.named_modules():
            if type(module) is torch.nn.Linear:
                hidden = random(device, torch.float32, 2, module.in_features)
                want = torch.nn.functional.linear(hidden, module.weight)
                assert torch.equal(module(hidden), want), name
    assert launches == []


@on_devices
def test_adapters_keep_their_own_code(device: str, launches: list[int]) -> None:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["k_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(tiny(Qwen3Config), config).get_base_model().eval()
    placed(model, device, torch.bfloat16)
    fused = FusedLayers(model, device)
    launches.clear()
    want, got = (logits_of(model, device, own, FEW) for own in (None, fused))
    assert launches == [1, 1] * LAYERS + [1], "behind attention, behind the MLP, the head"
    assert (got - want).float().abs().max() <= 0.1 * want.float().std()
    assert_untouched(model)


@on_devices
def test_a_member_that_is_not_asked_ends_the_group(device: str, launches: list[int]) -> None:
    dtype = torch.bfloat16
    layers = [linear(device, dtype, 64, rows) for rows in (16, 8, 8)]
    products = products_of(device, dtype, *layers)
    group = ProductGroup(products, layers)
    launches.clear()
    for turn in range(3):
        hidden = random(device, dtype, 2, 64, seed=turn)
        for index in (0, 2):  # never the second
            got = group.forward(index)(hidden)
            assert torch.equal(got, products.multiply(hidden, (layers[index],))[0])
    assert launches.count(3) == 1
    group.forget()


@on_devices
def test_what_waits_is_for_the_very_same_rows(device: str) -> None:
    dtype = torch.bfloat16
    layers = [linear(device, dtype, 64, rows) for rows in (16, 8, 8)]
    products = products_of(device, dtype, *layers)
    group = ProductGroup(products, layers)
    first, second = random(device, dtype, 2, 64), random(device, dtype, 2, 64, seed=1)
    group.forward(0)(first)
    got = group.forward(1)(second)
    assert torch.equal(got, products.multiply(second, (layers[1],))[0])
