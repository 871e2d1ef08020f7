"""Forced to one model, the engine writes what Hugging Face's own `generate` writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_pairs
from hf_pairs import FAMILIES, Pair

pytestmark = pytest.mark.both_engines

TOKENS = 210  # of each random sequence
MARGIN = 1e-4  # between the two largest logits; below, rounding may choose


def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Ids by `generate`, and the margin between the two largest logits at each of them."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    margins = []
    for logits in output.logits:
        first, second = logits[0].topk(2).values.tolist()
        margins.append(first - second)
    return output.sequences[0, len(prompt) :].tolist(), margins


def forced(pair: Pair, model: str, prompts: list[list[int]], **limits: int) -> list[list[int]]:
    """Ids by the engine, everything that could interfere switched off."""
    routed = pair.routed(route=model, answer_model=model, max_step_tokens=10_000, **limits)
    return [result.token_ids for result in routed.generate(prompts)]


def compare(got: list[int], want: list[int], margins: list[float]) -> tuple[int, int]:
    """Returns how many ids were compared, and how many positions were uncertain."""
    uncertain = [index for index, margin in enumerate(margins) if margin < MARGIN]
    end = uncertain[0] if uncertain else len(want)
    assert got[:end] == want[:end]
    return end, len(uncertain)


@pytest.mark.parametrize("model", ["small", "large"])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights(family: str, model: str) -> None:
    """Two ragged prompts in one batch, each past the window of the sliding layers many times."""
    pair = hf_pairs.random_pair(family)
    prompts = pair.prompts[:2]
    got = forced(pair, model, prompts, max_think_tokens=TOKENS, max_answer_tokens=0)
    compared, uncertain = 0, 0
    for ids, prompt in zip(got, prompts, strict=True):
        want, margins = greedy(pair.model(model), prompt, TOKENS)
        assert len(ids) >= len(want) == TOKENS
        counts = compare(ids, want, margins)
        compared, uncertain = compared + counts[0], uncertain + counts[1]
        assert len(set(want)) > 3, "a single repeated id would compare little"
    print(f"{family} {model}: {compared} ids equal, {uncertain} positions within {MARGIN}")
    assert compared >= 200


@pytest.mark.parametrize("model", ["small", "large"])
def test_trained_pair(model: str) -> None:
    """Whole answers, to the end of the sequence."""
    pair = hf_pairs.trained_pair()
    got = forced(pair, model, pair.prompts, max_think_tokens=400, max_answer_tokens=60)
    compared, uncertain = 0, 0
    for ids, prompt in zip(got, pair.prompts, strict=True):
        want, margins = greedy(pair.model(model), prompt, 400)
        counts = compare(ids, want, margins)
        compared, uncertain = compared + counts[0], uncertain + counts[1]
        if not counts[1] and len(want) < 400:
            assert len(ids) == len(want), "the engine went on, or stopped, where generate did not"
    print(f"trained {model}: {compared} ids equal, {uncertain} positions within {MARGIN}")
    assert compared >= 200


def test_the_models_of_a_pair_differ() -> None:
    """Otherwise a swap of the two would pass unseen."""
    for family in FAMILIES:
        pair = hf_pairs.random_pair(family)
        prompt = pair.prompts[0]
        assert greedy(pair.small, prompt, 30)[0] != greedy(pair.large, prompt, 30)[0]
