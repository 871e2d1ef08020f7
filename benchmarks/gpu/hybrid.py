"""Decode passes of a model with states, against the time to read its weights and states."""

from __future__ import annotations

from typing import Any

import torch
from clock import Clock
from models import VOCABULARY, weight_bytes
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from glimprouter.bench.hybrid import contenders
from glimprouter.hf.state.form import find_state_form

# About 2 billion weights; every fourth layer attends, the others are gated delta nets.
SHAPES: dict[str, dict[str, Any]] = {
    "toy": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "vocab_size": 2048,
    },
    "2B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "vocab_size": VOCABULARY,
    },
}


def _model(name: str, device: torch.device) -> Any:
    ends = {f"{token}_token_id": None for token in ("bos", "eos", "pad")}
    config = Qwen3_5TextConfig(**SHAPES[name], **ends)
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen3_5ForCausalLM(config).to(torch.bfloat16).eval()


@torch.inference_mode()
def run(clock: Clock, name: str, batches: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds of a pass, by batch and contender, and times of the floor.

    Args:
        clock: Of the device.
        name: Of the shape.
        batches: Sequences of a pass.
    """
    bandwidth = clock.copy_bandwidth()
    model = _model(name, clock.device)
    form = find_state_form(model)
    assert form is not None
    rows = []
    for batch in batches:
        moved = weight_bytes(model) + 2 * batch * form.num_bytes  # states are read and written
        floor = 1e3 * moved / bandwidth
        row: dict[str, Any] = {"batch": batch, "floor_ms": floor}
        for contender, call in contenders(model, batch, str(clock.device)).items():
            milliseconds = 1e-3 * clock.events(call)
            row[contender] = {"ms": milliseconds, "times_floor": milliseconds / floor}
        rows.append(row)
    return {"model": name, "state_bytes": form.num_bytes, "rows": rows}
