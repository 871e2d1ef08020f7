"""A model's weights in reduced precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from glimprouter.chains import reduced_copy
from tiny_models import tiny

PRECISIONS = ("bfloat16", "float16", "int8")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_copy_is_rounded_and_the_model_is_not_touched(precision: Any) -> None:
    full = tiny(Qwen3Config, tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in full.state_dict().items()}
    reduced = reduced_copy(full, precision)
    for name, weight in full.state_dict().items():
        assert torch.equal(weight, before[name])
    parts = dict(reduced.named_parameters())
    for name, weight in full.named_parameters():
        if precision != "int8":
            dtype = getattr(torch, precision)
            assert torch.equal(parts[name], weight.to(dtype))
        elif "proj" in name:
            rows = weight.double()
            step = rows.abs().amax(1, keepdim=True) / 127
            want = torch.round(rows / step) * step
            assert not torch.equal(parts[name], weight)
            torch.testing.assert_close(parts[name].double(), want, atol=1e-6, rtol=1e-5)
            assert all(len(row.unique()) <= 255 for row in parts[name])
        else:
            assert torch.equal(parts[name], weight)
    frequencies = dict(full.named_buffers())["model.rotary_emb.inv_freq"]
    assert torch.equal(dict(reduced.named_buffers())["model.rotary_emb.inv_freq"], frequencies)
    assert reduced.lm_head.weight is reduced.model.embed_tokens.weight


def test_a_row_of_zeros_stays_zero() -> None:
    full = tiny(Qwen3Config)
    with torch.no_grad():
        full.model.layers[0].mlp.up_proj.weight[3] = 0
    reduced = reduced_copy(full, "int8")
    assert not reduced.model.layers[0].mlp.up_proj.weight[3].any()
