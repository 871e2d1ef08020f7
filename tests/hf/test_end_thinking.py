"""Thinking that is ended from outside: as a budget of so many tokens ends it."""

from __future__ import annotations

from typing import Any

import pytest

from glimprouter.hf import Result, RoutedModel
from glimprouter.router import Phase
from hf_runs import begun, finish, routed, uninterrupted

pytestmark = pytest.mark.both_engines

PAIRS = ("qwen3", "trained", "two tokenizers")


def budgeted(model: RoutedModel, prompt: Any, tokens: int) -> Result:
    """What a run writes whose budget was so from the beginning."""
    return model.generate([prompt], max_think_tokens=tokens)[0]


def story(result: Result) -> tuple[Any, ...]:
    """All but the reason of the last step: a delimiter may end it before the budget does."""
    steps = [(step.model, step.text, step.num_tokens) for step in result.trace.steps]
    return result.token_ids, steps, result.answer, result.trace.end_reason


@pytest.mark.parametrize("passes", [2, 9, 17])
@pytest.mark.parametrize("name", PAIRS)
def test_it_is_what_a_budget_does(name: str, passes: int) -> None:
    model, prompts = routed(name)
    run = begun(model, prompts[:1], passes)
    count = len(run.generated(0))
    assert run._sequences.router.phase(0) not in (Phase.ANSWER, Phase.DONE)
    twin = run.fork(0, substream=0)
    run.end_thinking(twin)
    results = finish(run)
    want = budgeted(model, prompts[0], count)
    assert story(results[twin]) == story(want)
    assert results[twin].trace.think_limit == want.trace.think_limit == count
    assert story(results[0]) == story(uninterrupted(name))  # its own budget is as it was


@pytest.mark.parametrize("name", PAIRS)
def test_afterwards_it_is_rewound_saved_and_resumed(name: str) -> None:
    model, prompts = routed(name)
    run = begun(model, prompts[:1], 15)
    count = len(run.generated(0))
    run.end_thinking(0)
    closing = len(run.generated(0)) - count
    run.rewind(0, closing + 4)
    assert len(run.generated(0)) == count - 4
    saved = run.save(0)
    want = story(budgeted(model, prompts[0], count))
    assert story(finish(run)[0]) == story(finish(model.resume([saved]))[0]) == want


def test_it_ends_where_no_answer_is_wanted() -> None:
    model, prompts = routed("qwen3")
    run = model.stream(prompts[:2], max_answer_tokens=0)
    for _ in range(9):
        run.step()
    count = len(run.generated(0))
    run.end_thinking(0)
    results = finish(run)
    want = model.generate(prompts[:2], max_answer_tokens=0, max_think_tokens=count)[0]
    assert story(results[0]) == story(want)
    assert results[0].trace.end_reason == "budget"


def test_what_it_refuses_changes_nothing() -> None:
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:1], 3)
    before = run.save(0)
    run.rewind(0, len(run.generated(0)))
    with pytest.raises(ValueError, match="has written none yet"):
        run.end_thinking(0)
    run = model.resume([before])
    run.step()
    run.end_thinking(0)
    ended = run.generated(0)
    with pytest.raises(ValueError, match="it has ended"):
        run.end_thinking(0)
    assert run.generated(0) == ended
