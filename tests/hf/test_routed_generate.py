"""routed_generate behind `large.generate`: the tokens of RoutedModel, in generate's own form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation import GenerateDecoderOnlyOutput

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel, routed_generate
from hf_pairs import ENGINE, Pair

pytestmark = pytest.mark.both_engines

NEW = 50
LIMITS = {"max_answer_tokens": 10, "repetition_guard": False, "max_step_tokens": 12}


@pytest.fixture
def pair() -> Pair:
    return hf_pairs.random_pair("llama")


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def call(pair: Pair, **options: Any) -> Any:
    config = gr.RouterConfig(threshold=pair.threshold, **LIMITS)
    arguments: dict[str, Any] = {
        **left_padded(pair.prompts),
        "custom_generate": routed_generate,
        "small": pair.small,
        "small_tokenizer": pair.tokenizer,
        "router_config": config,
        "engine": ENGINE.get(),
        "max_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 0,
        **options,
    }
    return pair.large.generate(**arguments)


def test_the_tokens_of_a_routed_model(pair: Pair) -> None:
    sequences = call(pair)
    inputs = left_padded(pair.prompts)["input_ids"]
    assert torch.equal(sequences[:, : inputs.shape[1]], inputs)
    thinking = NEW - LIMITS["max_answer_tokens"] - 3  # "\n</think>\n\n" is three ids
    want = RoutedModel(
        pair.small,
        pair.large,
        pair.tokenizer,
        gr.RouterConfig(
            threshold=pair.threshold, temperature=0.0, max_think_tokens=thinking, **LIMITS
        ),
        eos_token_ids=[],
        engine=ENGINE.get(),
    ).generate(pair.prompts)
    for row, result in zip(sequences, want, strict=True):
        new = row[inputs.shape[1] :].tolist()
        count = len(result.token_ids)
        assert new[:count] == result.token_ids
        assert set(new[count:]) <= {0}
    assert {step.model for result in want for step in result.trace.steps} == {"small", "large"}
    assert sequences.shape[1] - inputs.shape[1] <= NEW


def test_model_output_on_request(pair: Pair) -> None:
    output = call(pair, return_dict_in_generate=True)
    assert isinstance(output, GenerateDecoderOnlyOutput)
    assert torch.equal(output.sequences, call(pair))


def test_manual_seed_decides_the_draws(pair: Pair) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(call(pair, do_sample=True, temperature=1.5, top_p=0.9, top_k=0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


class Other(LogitsProcessor, StoppingCriteria):  # type: ignore[misc]
    """What only the caller knows."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("never called")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no room": ({"max_new_tokens": 12}, "leaves no room to think"),
    "beams": ({"num_beams": 2}, "no beams"),
    "scores": ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
    "processor": ({"logits_processor": LogitsProcessorList([Other()])}, "cannot honour.*Other"),
    "penalty": ({"repetition_penalty": 1.2}, "cannot honour.*RepetitionPenalty"),
    "criterion": ({"stopping_criteria": [Other()]}, "cannot honour.*Other"),
    "tokenizer": ({"small_tokenizer": None}, "pass small_tokenizer="),
}


@pytest.mark.parametrize("name", BAD)
def test_what_routing_cannot_honour(pair: Pair, name: str) -> None:
    changed, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(pair, **changed)
