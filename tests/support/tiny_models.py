"""Random models of two layers, of any family, whose norms have weights that show."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

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
