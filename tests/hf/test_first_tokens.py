"""The large model writes the first tokens of a hard step, and the small one the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_pairs
from glimprouter.hf import Result, RoutedModel
from glimprouter.policies import RandomShare
from glimprouter.trace.html import trace_to_html
from hf_rewriting import Coins, blanks, check_same
from hf_runs import finish, routed, written

pytestmark = pytest.mark.both_engines
PAIRS = ("qwen3", "two tokenizers")


def writers_of(result: Result) -> list[list[str]]:
    """Of each token of each step, from the lengths of the runs."""
    return [
        [("small", "large")[place % 2] for place, run in enumerate(step.runs) for _ in range(run)]
        for step in result.trace.steps
    ]


def check_greedy(model: RoutedModel, prompts: list[Any], results: list[Result]) -> None:
    """Each token of the steps is the most likely one of its writer, by a full forward pass."""
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([[*prompt, *result.token_ids]])
        with torch.inference_mode():
            best = {
                name: m(ids).logits[0, :, : hf_pairs.VOCABULARY].double().argmax(-1).tolist()
                for name, m in (("small", model.small), ("large", model.large))
            }
        place = 0
        for step, writers in zip(result.trace.steps, writers_of(result), strict=True):
            assert len(writers) == step.num_tokens
            for writer in writers:
                assert result.token_ids[place] == best[writer][len(prompt) + place - 1]
                place += 1


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("policy", [None, RandomShare(0.5)])
def test_who_writes_which_token(count: int, drafts: int, policy: Any) -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(drafts=drafts, large_tokens=count)
    model.policy = policy
    results = model.generate(pair.prompts)
    check_greedy(model, pair.prompts, results)
    split = 0
    for result in results:
        for step, writers in zip(result.trace.steps, writers_of(result), strict=True):
            if step.entropy is None or step.model == "small":
                assert writers == ["small"] * step.num_tokens
                continue
            start = writers.index("large")
            ids = result.token_ids[sum(s.num_tokens for s in result.trace.steps[: step.index]) :]
            assert start <= blanks(model, ids[: step.num_tokens])
            own = min(count, step.num_tokens - start)
            assert writers[start:] == ["large"] * own + ["small"] * (step.num_tokens - start - own)
            split += writers[-1] == "small"
    assert split > 2
    both = [r for r in results if any(s.model == "large" and s.runs[2:] for s in r.trace.steps)]
    page = trace_to_html(both[0].trace)
    assert f"the small model went on behind {count} token" in page


@pytest.mark.parametrize("name", PAIRS)
def test_with_steps_that_are_rewritten(name: str) -> None:
    """A step that is rejected is begun by the large model, and ended by the small one for good."""
    model, prompts = routed(name)
    model.policy = policy = Coins()
    results = model.generate(prompts, large_tokens=2)
    model.policy = policy.beforehand()
    check_same(results, model.generate(prompts, large_tokens=2))
    assert sum(step.rewritten > 0 for result in results for step in result.trace.steps) > 3


@pytest.mark.parametrize("name", PAIRS)
def test_forked_rewound_and_saved(name: str) -> None:
    model, prompts = routed(name)
    model.policy = RandomShare(0.6, seed=9)
    want = written(model.generate(prompts[:1], large_tokens=3)[0])
    for passes in (9, 19):
        run = model.stream(prompts[:1], large_tokens=3)
        for _ in range(passes):
            run.step()
        twin = run.fork(0, substream=0)
        saved = run.save(0)
        run.rewind(0, 3)
        ended = finish(run)
        assert [written(ended[0]), written(ended[twin])] == [want, want]
        assert written(finish(model.resume([saved]))[0]) == want


def test_steps_that_are_large_without_a_decision_are_whole() -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8)
    want = model.generate(pair.prompts, route="large")
    results = model.generate(pair.prompts, route="large", large_tokens=1)
    assert [written(result) for result in results] == [written(result) for result in want]
    for result in model.generate(pair.prompts, first_steps_large=2, large_tokens=1):
        assert all(set(writers) == {"large"} for writers in writers_of(result)[:2])
