"""Rotary embeddings whose factors depend on the length: no sequence feels the ones beside it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import glimprouter as gr
from glimprouter.hf import RoutedModel
from glimprouter.hf.pair.facts import rope_depends_on_length
from glimprouter.policies import SpecReason
from hf_pairs import TOKENIZER, VOCABULARY, output_bias, raw_prompts

ORIGINAL = 32  # positions that the short factors are for
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0] * 8,
    "long_factor": [float(2 + place) for place in range(8)],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 8.0}
LENGTHS = (4, 60, 9, 45)


def rotary_model(rope: dict[str, Any], seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=False,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config)
    model.lm_head.bias = torch.nn.Parameter(output_bias(seed))
    model.generation_config.eos_token_id = None
    return model.eval()


def pair_of_models(rope: dict[str, Any]) -> tuple[Any, Any]:
    return rotary_model(rope, 1), rotary_model(rope, 2)


CONFIG = gr.RouterConfig(
    threshold=2.0,
    temperature=0.0,
    repetition_guard=False,
    max_step_tokens=8,
    max_think_tokens=20,
    max_answer_tokens=4,
)


def expect_same_as_alone(routed: RoutedModel) -> None:
    prompts = raw_prompts(LENGTHS)
    together = routed.generate(prompts)
    for prompt, result in zip(prompts, together, strict=True):
        alone = routed.generate([prompt])[0]
        assert result.token_ids == alone.token_ids
        steps = zip(result.trace.steps, alone.trace.steps, strict=True)
        for step, own in steps:
            assert step.model == own.model
            assert step.entropy == pytest.approx(own.entropy, abs=1e-4)


def test_longrope_beside_a_long_sequence() -> None:
    models = pair_of_models(LONGROPE)
    with pytest.warns(
        RuntimeWarning, match=r"rotary embeddings \(longrope\) depend on the longest"
    ):
        routed = RoutedModel(*models, TOKENIZER, CONFIG)
    assert routed.engine == "gather"
    expect_same_as_alone(routed)
    with pytest.raises(ValueError, match='engine="auto" takes what serves it'):
        RoutedModel(*models, TOKENIZER, CONFIG, engine="paged")


def test_what_reads_ahead_of_longrope_is_refused() -> None:
    """Keys that a longer pass has computed are others, and would stay."""
    models = pair_of_models(LONGROPE)
    gathered: Any = {"engine": "gather"}
    assert RoutedModel(*models, TOKENIZER, CONFIG, **gathered).drafting is None
    with pytest.raises(ValueError, match="drafts=3 needs models that can drop"):
        RoutedModel(*models, TOKENIZER, CONFIG, drafts=3, **gathered)
    with pytest.raises(ValueError, match=r"keys of the large model \(longrope\) depend on"):
        RoutedModel(*models, TOKENIZER, CONFIG, policy=SpecReason(), **gathered)


@pytest.mark.parametrize("engine", ["paged", "gather"])
def test_dynamic_scaling_does_not_begin_within_the_context(engine: Any) -> None:
    """So these models are served in batches as others are."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        expect_same_as_alone(
            RoutedModel(*pair_of_models(DYNAMIC), TOKENIZER, CONFIG, engine=engine)
        )


@pytest.mark.parametrize(
    ("fields", "depends"),
    [
        ({"rope_parameters": LONGROPE}, True),
        ({"rope_scaling": {"type": "longrope"}}, True),
        ({"rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": LONGROPE}}, True),
        ({"rope_parameters": {"full_attention": None, "sliding_attention": DYNAMIC}}, False),
        ({"rope_parameters": None, "rope_scaling": None}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, False),
        ({}, False),
    ],
)
def test_where_a_configuration_says_it(fields: dict[str, Any], depends: bool) -> None:
    assert rope_depends_on_length(SimpleNamespace(**fields)) is depends
