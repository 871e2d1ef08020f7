"""Chains that are written outside of a run: their budgets, and what is kept of a cache."""

from __future__ import annotations

import torch

from evaluation_runs import pair, task
from glimprouter.evaluation.chain_systems.plain_chain import (
    Budgets,
    Greedy,
    Written,
    outcome_of_tokens,
    within_budgets,
)


def prompt_of(place: int) -> list[int]:
    ids: list[int] = pair().tokenizer.apply_chat_template(
        [{"role": "user", "content": task().problems(6, "report")[place].prompt}],
        add_generation_prompt=True,
        return_dict=False,
    )
    return ids


def test_thinking_that_reaches_its_budget_is_closed() -> None:
    """As a run closes it: the answer is what the model says behind the closing ids."""
    model, ids = pair(), prompt_of(0)

    greedy = Greedy(model.large)

    def write(before: list[int], most: int, ends: list[int]) -> Written:
        tokens = greedy.write(before, most, ends)
        return Written(tokens, ["large"] * len(tokens))

    (tokens, writers), count = within_budgets(model, ids, Budgets(20, 3), write)
    closed = model.boundary.close_ids
    assert count == len(closed)
    assert tokens[20 : 20 + len(closed)] == closed
    assert len(tokens) == len(writers) <= 20 + len(closed) + 3
    with torch.inference_mode():
        given = torch.tensor([[*ids, *tokens[: 20 + len(closed)]]])
        answer = model.large.generate(given, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokens[20 + len(closed) :] == answer[0, given.shape[1] :].tolist()
    outcome = outcome_of_tokens(
        model,
        task().problems(1, "report")[0],
        Written(tokens, writers),
        passes={"small": 0, "large": len(tokens)},
        seconds=1.0,
        decision=0.0,
    )
    assert "</think>" not in outcome.result.answer
    assert sum(step.num_tokens for step in outcome.result.trace.steps) <= 20


def test_what_was_read_is_kept_or_forgotten() -> None:
    """Whatever it has read before, it writes what the model's own generate writes."""
    model, ids = pair(), prompt_of(0)
    greedy = Greedy(model.large)
    first = greedy.write(ids, 12, [])
    for text in (
        [*ids, *first],
        [*ids, *first[:5], 198, 40],
        [*ids, *first[:5], 198],
        ids[:9],
        ids,
    ):
        with torch.inference_mode():
            given = torch.tensor([text])
            want = model.large.generate(given, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert greedy.write(text, 6, model.boundary.eos_ids) == want[0, len(text) :].tolist()


def test_thinking_within_its_budget_is_one_text() -> None:
    model, ids = pair(), prompt_of(4)
    asked: list[int] = []

    def write(before: list[int], most: int, ends: list[int]) -> Written:
        asked.append(most)
        tokens = Greedy(model.large).write(before, most, ends)
        return Written(tokens, ["large"] * len(tokens))

    whole, closed = within_budgets(model, ids, Budgets(300, 16), write)
    assert asked == [316]
    assert closed == 0
    assert whole.tokens[-1] in model.boundary.eos_ids
    short, _ = within_budgets(model, ids, Budgets(300, 1), write)
    end = whole.tokens.index(model.boundary.think_end_ids[0])
    assert short.tokens == whole.tokens[: end + 2]
