"""Loading a pair: what transformers takes, for both models or for each one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import glimprouter as gr
import hf_pairs
from gguf_file import toy_model, write_gguf
from glimprouter.demo_pair import large_path, small_path
from glimprouter.hf import RoutedModel
from glimprouter.hf.pair.loading import check_device, option_of

PAIR = (small_path(), large_path())
PROMPT = "Reduce 18,39,12"


def test_a_pair_answers_without_any_option() -> None:
    result = RoutedModel.from_pretrained(*PAIR).generate([PROMPT], temperature=0.0)[0]
    assert result.trace.error is None
    assert result.trace.derived_limits == ["answer", "think"]
    assert result.trace.think_limit + result.trace.answer_limit < 1024


def test_options_for_each_model() -> None:
    routed = RoutedModel.from_pretrained(
        *PAIR,
        dtype={"small": torch.bfloat16, "large": torch.float32},
        attn_implementation={"large": "eager"},
        max_sequences=3,
        engine="gather",
    )
    assert (routed.small.dtype, routed.large.dtype) == (torch.bfloat16, torch.float32)
    assert routed.large.config._attn_implementation == "eager"
    assert routed.small.config._attn_implementation != "eager"
    assert (routed.max_sequences, routed.engine, routed.execution) == (3, "gather", "eager")


@pytest.mark.parametrize("engine", ["paged", "gather", "native"])
def test_layers_that_lie_elsewhere(engine: str, tmp_path: Path) -> None:
    """Spread by ``device_map``, over memory and a disk here: each engine computes there."""
    limits = {"max_think_tokens": 40, "max_answer_tokens": 8}
    config = gr.RouterConfig(temperature=0.0, threshold=0.05, **limits)
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "engine": engine}
    whole = RoutedModel.from_pretrained(*PAIR, **options)
    layers = {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(8)}
    others = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    spread = RoutedModel.from_pretrained(
        *PAIR,
        **options,
        device_map={"large": {**dict.fromkeys(others, "cpu"), **layers}},
        offload_folder={"large": tmp_path},
    )
    assert {str(parameter.device) for parameter in spread.large.parameters()} == {"cpu", "meta"}
    assert spread.engine == engine
    got, want = (model.generate([PROMPT])[0] for model in (spread, whole))
    assert got.token_ids == want.token_ids
    assert {step.model for step in got.trace.steps} == {"small", "large"}


def test_gguf_files_hold_model_and_tokenizer(tmp_path: Path) -> None:
    """Two in one folder; the tokens are those that transformers writes with the same file."""
    files = {"small": "small.gguf", "large": "large.gguf"}
    for seed, name in enumerate(files.values()):
        write_gguf(toy_model(seed, layers=2 + seed), tmp_path / name, hf_pairs.CHAT_TEMPLATE)
    limits = {"max_think_tokens": 24, "max_answer_tokens": 0}
    config = gr.RouterConfig(temperature=0.0, repetition_guard=False, **limits)
    routed = RoutedModel.from_pretrained(
        tmp_path, tmp_path, config=config, gguf_file=files, dtype=torch.float32, eos_token_ids=[]
    )
    assert routed.large.config.num_hidden_layers == 3
    assert routed.tokenizer.chat_template == hf_pairs.CHAT_TEMPLATE
    ids = list(range(40, 52))
    for name, file in files.items():
        own = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file, dtype=torch.float32)
        prompt = torch.tensor([ids])
        stop = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        want = own.generate(prompt, attention_mask=mask, do_sample=False, **stop)[0, len(ids) :]
        (result,) = routed.generate([ids], route=name)
        assert {step.model for step in result.trace.steps} == {name}
        assert result.token_ids[: len(want)] == want.tolist()


@pytest.mark.parametrize(
    ("value", "small", "large"),
    [
        ("auto", "auto", "auto"),
        ({"small": 1}, 1, None),
        ({"large": 2, "small": 1}, 1, 2),
        ({"": "cpu"}, {"": "cpu"}, {"": "cpu"}),
        ({"small": 1, "lm_head": 0}, {"small": 1, "lm_head": 0}, {"small": 1, "lm_head": 0}),
        ({}, {}, {}),
    ],
)
def test_only_the_names_of_the_models_make_an_option_for_each(
    value: Any, small: Any, large: Any
) -> None:
    assert (option_of("small", value), option_of("large", value)) == (small, large)


def test_the_cpu_may_be_named() -> None:
    routed = RoutedModel.from_pretrained(*PAIR, device="cpu", execution="auto")
    assert (routed.device, routed.execution) == ("cpu", "eager")
    assert check_device(str(torch.device("cpu"))) == "cpu"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "xpu:0"}, ValueError, r"device must be one of .* got 'xpu:0'$"),
        ({"nonsense": 1}, TypeError, "unexpected keyword argument 'nonsense'"),
        ({"compile": True}, TypeError, "unexpected keyword argument 'compile'"),
        ({"execution": "compile"}, ValueError, "execution must be one of"),
        ({"execution": "graphs"}, ValueError, '"auto" takes what can be had'),
        ({"engine": "gather", "execution": "compiled"}, ValueError, 'needs engine="paged"'),
        ({"max_sequences": 0}, ValueError, "max_sequences must be >= 1"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RoutedModel.from_pretrained(*PAIR, **options)


@pytest.mark.skipif("cuda:0" in gr.build_info()["devices"], reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    for name in ("cuda:0", "cuda", torch.device("cuda", 0)):
        with pytest.raises(ValueError, match="no GPU was found, or this build has no CUDA kernels"):
            RoutedModel.from_pretrained(*PAIR, device=name)  # type: ignore[arg-type]
