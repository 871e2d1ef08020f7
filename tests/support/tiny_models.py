"""Random models of two layers, of any family, whose norms show; and their passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.hf.pair.devices import torch_device
from glimprouter.kv import KvCache, PagePool

LAYERS = 2
TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def tiny(config_class: Any, **options: Any) -> Any:
    """In float32 on the CPU, always the same."""
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config_class(**{**TINY, **options})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn_like(weight)
    return model


def placed(model: Any, device: str, dtype: torch.dtype) -> Any:
    return model.to(torch_device(device), dtype)


def logits_of(model: Any, device: str, fused: FusedLayers | None, ids: list[int]) -> torch.Tensor:
    """Of the last token of one sequence on pages."""
    layout = kv_layout(model)
    pool = PagePool([layout], 4 * layout.page_bytes, layout.page_bytes, device)
    cache = KvCache(pool, 1)
    return paged_forward(model, pool, cache.prepare(0, [cache.open([ids])]), fused)


def random(device: str, dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch_device(device), dtype)


def assert_untouched(model: Any) -> None:
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[str]]:
    calls: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: calls.append("before")),
        module.register_forward_hook(lambda *_: calls.append("after")),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
