"""Budgets, caps and the context: when the thinking is closed, by whom the steps are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hf_pairs
from glimprouter.hf.engine.gather_runner import ModelRunner
from hf_pairs import BLANK_LINE, END_THINK, NEWLINE, Pair
from hf_watch import watched

pytestmark = pytest.mark.both_engines

CLOSING = [NEWLINE, END_THINK, BLANK_LINE]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return hf_pairs.random_pair("qwen3")


def plain_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
    )
    return list(output[0, len(ids) :].tolist())


@pytest.mark.parametrize("answer_model", ["small", "large"])
@pytest.mark.parametrize("writer", ["small", "large"])
def test_a_spent_budget_closes_the_thinking(pair: Pair, writer: str, answer_model: str) -> None:
    """The answer is what that model writes after prompt, thinking and closing ids."""
    routed = pair.routed(route=writer, answer_model=answer_model, max_think_tokens=25)
    prompt = pair.prompts[0]
    with watched(pair.model(answer_model)) as seen:
        result = routed.generate([prompt])[0]
    thinking = plain_greedy(pair.model(writer), prompt, 25)
    opening = [*prompt, *thinking, *CLOSING]
    answer = plain_greedy(pair.model(answer_model), opening, 8)
    assert result.token_ids == [*thinking, *CLOSING, *answer]
    assert [token for *_, token in seen] == [*opening, *answer[:-1]]
    assert result.answer == pair.tokenizer.decode(answer).strip()
    assert result.trace.steps[-1].end_reason == "budget"
    assert result.trace.end_reason == "answer_budget"


def test_repetition_closes_the_thinking(pair: Pair) -> None:
    """Steps of one token repeat soon."""
    options = {"route": "small", "max_step_tokens": 1, "max_think_tokens": 200}
    result = pair.routed(**options, repetition_guard=True).generate(pair.prompts[:1])[0]
    assert result.trace.steps[-1].end_reason == "repetition"
    count = sum(step.num_tokens for step in result.trace.steps)
    assert count < 200
    assert result.token_ids[count : count + 3] == CLOSING


@pytest.mark.parametrize("reason", ["budget", "repetition"])
def test_no_answer(pair: Pair, reason: str) -> None:
    """max_answer_tokens=0 ends the sequence with the closing ids, which are no step."""
    limits = {"budget": {"max_think_tokens": 25}, "repetition": {"max_step_tokens": 1}}[reason]
    routed = pair.routed(
        route="small", max_answer_tokens=0, repetition_guard=reason == "repetition", **limits
    )
    with watched(pair.large) as seen:
        result = routed.generate(pair.prompts[:1])[0]
    assert seen == []
    trace = result.trace
    assert trace.steps[-1].end_reason == trace.end_reason == reason
    assert "</think>" not in trace.steps[-1].text
    assert sum(step.num_tokens for step in trace.steps) == len(result.token_ids) - len(CLOSING)
    assert result.token_ids[-3:] == CLOSING
    assert (result.answer, trace.answer_tokens) == ("", 0)


def test_step_cap(pair: Pair) -> None:
    """A step that is cut gets no delimiter: the ids are those without a cap."""
    free = pair.routed(route="small", max_step_tokens=1000).generate(pair.prompts[:1])[0]
    cut = pair.routed(route="small", max_step_tokens=4).generate(pair.prompts[:1])[0]
    assert cut.token_ids == free.token_ids
    steps = cut.trace.steps
    assert max(step.num_tokens for step in steps) == 4
    reasons = {step.end_reason for step in steps[:-1]}
    assert reasons == {"cap", "delimiter"}
    for step in steps[:-1]:
        assert (step.num_tokens == 4) or step.end_reason == "delimiter"
    assert len(steps) > len(free.trace.steps)


def test_first_steps_large(pair: Pair) -> None:
    """They are not glimpsed; the small model starts with the first step after them."""
    result = pair.routed(first_steps_large=2).generate(pair.prompts[:1])[0]
    first, second, third, *_ = result.trace.steps
    assert [step.model for step in (first, second)] == ["large", "large"]
    assert (first.entropy, second.entropy) == (None, None)
    assert third.entropy is not None
    count = first.num_tokens + second.num_tokens
    want = plain_greedy(pair.large, pair.prompts[0], count)
    assert result.token_ids[:count] == want


def test_overrides_are_for_one_call(pair: Pair) -> None:
    routed = pair.routed()
    before = routed.generate(pair.prompts[:1])[0]
    override = routed.generate(pair.prompts[:1], threshold=float("inf"), max_think_tokens=10)[0]
    assert {step.model for step in override.trace.steps} == {"small"}
    assert sum(step.num_tokens for step in override.trace.steps) == 10
    assert override.trace.threshold == float("inf")
    assert routed.generate(pair.prompts[:1])[0].token_ids == before.token_ids
    with pytest.raises(TypeError, match="unknown option 'treshold'"):
        routed.generate(pair.prompts[:1], treshold=1.0)
    with pytest.raises(ValueError, match="manual"):
        routed.generate(pair.prompts[:1], route="manual")


def narrow_pair(context: int) -> Pair:
    """A pair whose large model takes so many positions only."""
    large = hf_pairs.random_model.__wrapped__("qwen3", 2, 8)
    large.config.max_position_embeddings = context
    small = hf_pairs.random_model("qwen3", 3, 7)
    return Pair(small, large, hf_pairs.TOKENIZER, hf_pairs.raw_prompts(), threshold=2.0)


def test_the_answer_is_reserved_in_the_context() -> None:
    """The thinking gets what prompt, closing ids and answer leave of the narrower context."""
    pair = narrow_pair(64)
    results = pair.routed(max_think_tokens=None, max_answer_tokens=9).generate(pair.prompts)
    for prompt, result in zip(pair.prompts, results, strict=True):
        room = 64 - len(prompt) - len(CLOSING) - 9
        assert result.trace.think_limit == room
        assert sum(step.num_tokens for step in result.trace.steps) == room
        assert result.trace.answer_tokens == 9
        assert len(prompt) + len(result.token_ids) == 64
    short = pair.routed(max_think_tokens=5, max_answer_tokens=9).generate(pair.prompts)
    assert {result.trace.think_limit for result in short} == {5}
    with pytest.raises(ValueError, match=r"max_think_tokens=1000 does not fit: prompt 0 .* unset"):
        pair.routed(max_think_tokens=1000, max_answer_tokens=9).generate(pair.prompts)


def test_no_position_lies_outside_the_context() -> None:
    pair = narrow_pair(64)
    with watched(pair.large) as seen:
        pair.routed(max_think_tokens=None, max_answer_tokens=9).generate(pair.prompts)
    last = max(position for _, position, _ in seen)
    assert last == 64 - 2, "nobody computes the answer's last id"


def test_a_prompt_that_is_too_long() -> None:
    """Refused before anything runs, with the numbers; one token of thinking is enough."""
    pair = narrow_pair(64)
    prompt = pair.prompts[2]
    largest = 64 - len(prompt) - len(CLOSING) - 1
    with watched(pair.small) as seen, pytest.raises(ValueError, match=r"prompt 1 has 41 tokens"):
        pair.routed(max_think_tokens=None, max_answer_tokens=largest + 1).generate(
            [pair.prompts[0], prompt]
        )
    assert seen == []
    result = pair.routed(max_think_tokens=None, max_answer_tokens=largest).generate([prompt])[0]
    assert result.trace.think_limit == 1


def test_padding_stays_within_learned_positions() -> None:
    """A row near the end of the context, padded to one that catches up: no row leaves the table."""
    torch.manual_seed(1)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    special = {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, **shape, **special)).eval()
    late, early = [index % 50 for index in range(60)], list(range(40, 0, -1))
    runner = ModelRunner("small", model, 2)
    runner.forward([0], [late[:55]])
    logits = runner.forward([0, 1], [late[55:], early])
    for row, ids in zip(logits, (late, early), strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(row, model(torch.tensor([ids])).logits[0, -1])
