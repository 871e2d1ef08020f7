"""Graphs hold what adapters add: others void them, and the same keep them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from device_pairs import DEVICES, pair_of, written
from recorded_graphs import CountingRecorder, graphs_of, routed

pytestmark = [pytest.mark.device, pytest.mark.needs_device]


def adapted() -> tuple[Any, Any]:
    """A pair whose large model has two adapters, the first in use."""
    pair = pair_of("qwen3")
    small, large = copy.deepcopy(pair.small), copy.deepcopy(pair.large)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False
        )
        large.add_adapter(config, name)
    large.set_adapter("first")
    return small, large.eval()


def scale(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["first"] *= 3


def merge(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge(adapter_names=["first"])


CHANGES: dict[str, Callable[[Any], object]] = {
    "another": lambda model: model.set_adapter("second"),
    "off": lambda model: model.disable_adapters(),
    "scaled": scale,
    "merged": merge,
}


@pytest.mark.parametrize("device", DEVICES)
def test_other_adapters_void_the_graphs(device: str, recorders: list[CountingRecorder]) -> None:
    """A replay would compute with the adapters that were recorded."""
    prompts = pair_of("qwen3").prompts[:2]
    models = adapted()
    model = routed(device, models=models, execution="graphs")
    large, texts = model.large, []
    for name, change in {"": lambda _: None, **CHANGES}.items():
        change(large)
        want = written(
            routed(
                device, models=(model.small, large), execution="eager", fused_layers=False
            ).generate(prompts)
        )
        before = graphs_of(model).get("large")
        assert written(model.generate(prompts)) == want, name
        made = graphs_of(model)["large"]
        assert made is not before, name
        assert made.captured, name
        assert written(model.generate(prompts)) == want, name
        assert graphs_of(model)["large"] is made, "nothing has changed"
        texts.append(want)
        if name == "off":
            large.enable_adapters()
            large.set_adapter("first")
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]
    assert recorders
