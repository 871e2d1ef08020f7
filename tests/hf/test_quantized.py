"""Quantized checkpoints: what a CPU can run is served, what needs a library says so."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TorchAoConfig

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.trial.trial import Trial

PAIR = hf_pairs.random_pair("qwen3")
CONFIG = gr.RouterConfig(
    temperature=0.0, repetition_guard=False, max_think_tokens=30, max_answer_tokens=0
)
# What a checkpoint says of itself, and the library that reads it.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"bits": 4, "group_size": 128, "desc_act": False}, "optimum"),
    "awq": ({"bits": 4, "group_size": 128, "zero_point": True}, "gptqmodel"),
    "bitsandbytes": ({"load_in_8bit": True}, "bitsandbytes"),
    "compressed-tensors": ({"format": "int-quantized"}, "compressed_tensors"),
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The pair, saved."""
    paths = tmp_path / "small", tmp_path / "large"
    for path, model in zip(paths, (PAIR.small, PAIR.large), strict=True):
        model.save_pretrained(path)
        PAIR.tokenizer.save_pretrained(path)
    return paths


def test_eight_bits_by_torchao(folders: tuple[Path, Path]) -> None:
    """On pages, and every token is that of a full pass of the quantized model."""
    quantization = pytest.importorskip("torchao.quantization")
    eight_bits = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = RoutedModel.from_pretrained(
        *folders, config=CONFIG, quantization_config=eight_bits, dtype=torch.float32, thinking=None
    )
    assert model.engine == "paged"
    weight = model.small.model.layers[0].self_attn.q_proj.weight
    assert type(weight) is not torch.nn.Parameter
    prompt = PAIR.prompts[0]
    [result] = model.generate([prompt], route="small")
    ids = torch.tensor([[*prompt, *result.token_ids]])
    with torch.inference_mode():
        logits = model.small(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    known = logits[:, : hf_pairs.VOCABULARY]  # models are wider than their tokenizer
    assert result.token_ids == known.argmax(-1).tolist()
    assert len(result.token_ids) == 30


@pytest.mark.parametrize("method", METHODS)
def test_a_library_that_is_missing_is_named(method: str, folders: tuple[Path, Path]) -> None:
    options, library = METHODS[method]
    if find_spec(library) is not None:
        # What is tried is the message of an environment without it; CI has none of the four.
        pytest.skip(f"{library} is here")
    path = folders[1] / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": method, **options}
    path.write_text(json.dumps(config))
    with pytest.raises(ImportError, match=library.replace("_", ".")):
        RoutedModel.from_pretrained(*folders, config=CONFIG)


def test_a_quantized_model_may_round_as_half_precision_does() -> None:
    """Eight bits of activations, whose scales depend on the pass: no more than that is allowed."""
    model = hf_pairs.random_model("qwen3", 2, 3)
    plain = Trial(model)
    model.is_quantized = True
    try:
        quantized = Trial(model)
    finally:
        del model.is_quantized
    assert (plain._dtype, quantized._dtype) == (torch.float32, torch.float16)
