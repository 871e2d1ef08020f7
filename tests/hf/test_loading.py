"""Loading a pair: what transformers takes, for both models or for each one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import glimprouter as gr
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
