"""Policies that decide for a pair: what they see, what they change, and what may go wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
import hf_pairs
from glimprouter.config import ModelName
from glimprouter.hf import RoutedModel
from glimprouter.policies import EntropyThreshold, Glimpse, Policy, RandomShare
from hf_runs import entropies, finish, routed, written

pytestmark = pytest.mark.both_engines
PAIRS = ("qwen3", "two tokenizers")


class Recording(Policy):
    """Remembers what it was asked, and decides as another."""

    signals = gr.OutputField.ALL

    def __init__(self, own: Policy) -> None:
        self.own = own
        self.seen: list[Glimpse] = []

    def before(self, glimpse: Glimpse) -> ModelName:
        self.seen.append(glimpse)
        return self.own.before(glimpse)


class Failing(Policy):
    """Raises once, at a call of a given number."""

    def __init__(self, own: Policy, at: int, error: BaseException) -> None:
        self.own, self.at, self.error = own, at, error

    def before(self, glimpse: Glimpse) -> ModelName:
        self.at -= 1
        if self.at == 0:
            raise self.error
        return self.own.before(glimpse)


@pytest.mark.parametrize("comparison", [">", ">="])
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("drafts", [0, 3])
def test_the_rule_of_the_router_as_a_policy(
    comparison: Any, top_k: int | None, drafts: int
) -> None:
    """Every token and every decision, to the bit."""
    pair = hf_pairs.pair_of("qwen3")
    options = {"temperature": 0.8, "comparison": comparison, "entropy_top_k": top_k}
    seen = pair.routed(threshold=float("inf"), **options).generate(pair.prompts)
    threshold = float(np.median([e for result in seen for e in entropies(result)]))
    model = pair.routed(drafts=drafts, threshold=threshold, **options)
    want = model.generate(pair.prompts)
    assert all(result.trace.policy is None for result in want)
    model.policy = EntropyThreshold(threshold, comparison)
    got = model.generate(pair.prompts)
    assert [written(result) for result in got] == [written(result) for result in want]
    assert {step.model for result in got for step in result.trace.steps} == {"small", "large"}
    for result, plain in zip(got, want, strict=True):
        assert result.trace.policy == "EntropyThreshold"
        assert math.isnan(result.trace.threshold)
        glimpsed = [step.entropy for step in result.trace.steps]
        assert glimpsed == [step.entropy for step in plain.trace.steps]
        assert result.counts == plain.counts


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("drafts", [0, 3])
def test_a_policy_sees_what_the_model_gives(name: str, drafts: int) -> None:
    """Every statistic of every glimpse against float64 of a full forward pass."""
    model, prompts = routed(name)
    model.policy = policy = Recording(RandomShare(0.4))
    results = model.generate(prompts, seeds=3)
    asked = {(seen.substream, seen.step): seen for seen in policy.seen}
    assert len(asked) == len(policy.seen) > 8
    for index, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        writers = [step.model for step in result.trace.steps]
        for step in result.trace.steps:
            if step.entropy is None:  # nothing but white space, before a budget ended it
                assert not step.text.strip()
                continue
            seen = asked[index, step.index]
            assert seen.seed == 3
            assert seen.entropy == step.entropy
            assert seen.previous == (writers[step.index - 1] if step.index else None)
            assert policy.own.before(seen) == step.model
        if name != "two tokenizers":
            check_statistics(model, prompt, result.token_ids, asked, index)


def check_statistics(
    model: RoutedModel, prompt: Any, ids: list[int], asked: dict[Any, Glimpse], index: int
) -> None:
    with torch.inference_mode():
        logits = model.small(torch.tensor([[*prompt, *ids]])).logits[0].double()
    for (sequence, _), seen in asked.items():
        if sequence != index:
            continue
        log_p = torch.log_softmax(logits[len(prompt) - 1 + seen.position], -1)
        p = log_p.exp()
        two = p.topk(2).values
        entropy = -(p * log_p).sum()
        varentropy = (p * log_p.square()).sum() - entropy.square()
        want = [float(x) for x in (entropy, two[0], two[0] - two[1], varentropy)]
        got = [seen.entropy, seen.max_prob, seen.margin, seen.varentropy]
        assert got == pytest.approx(want, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_forked_rewound_and_saved(name: str) -> None:
    """Coins follow from keys, so a run that was disturbed writes the same."""
    model, prompts = routed(name)
    model.policy = RandomShare(0.4, seed=9)
    want = written(model.generate(prompts[:1])[0])
    run = model.stream(prompts[:1])
    for _ in range(19):
        run.step()
    twin = run.fork(0, substream=0)
    saved = run.save(0)
    run.rewind(0, 7)
    ended = finish(run)
    assert [written(ended[0]), written(ended[twin])] == [want, want]
    assert written(finish(model.resume([saved]))[0]) == want
    model.policy = None
    with pytest.raises(
        ValueError, match=r"is decided by a policy \(RandomShare\), and this run has"
    ):
        model.resume([saved])


@pytest.mark.parametrize("error", [KeyError("no rule"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("drafts", [0, 3])
def test_a_policy_that_raises_is_asked_again(error: BaseException, at: int, drafts: int) -> None:
    """Nothing was decided in that pass, so nothing is lost."""
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8, drafts=drafts, max_sequences=3)
    model.policy = RandomShare(0.4)
    want = [written(result) for result in model.generate(pair.prompts)]
    model.policy = Failing(RandomShare(0.4), at, error)
    run = model.stream(pair.prompts)
    results: dict[int, Any] = {}

    def go_on() -> None:
        for event in run:
            if event.result is not None:
                results[event.sequence] = event.result

    with pytest.raises(type(error)):
        go_on()
    go_on()
    assert [written(results[index]) for index in range(len(pair.prompts))] == want


def test_a_policy_that_names_nobody_is_told_so() -> None:
    class Nobody(Policy):
        def before(self, glimpse: Glimpse) -> Any:
            return "both"

    model, prompts = routed("qwen3")
    model.policy = Nobody()
    with pytest.raises(ValueError, match=r"must return .* got 'both'"):
        model.generate(prompts[:2])


def test_a_policy_that_is_empty_is_one() -> None:
    """One that remembers may have a length, which is 0 at first."""

    class Remembering(Policy, list):  # type: ignore[type-arg]
        def before(self, glimpse: Glimpse) -> ModelName:
            self.append(glimpse)
            return "large"

    model, prompts = routed("qwen3")
    model.policy = policy = Remembering()
    assert not policy
    (result,) = model.generate(prompts[:1])
    assert len(policy) > 3
    assert result.trace.policy == "Remembering"
    assert {step.model for step in result.trace.steps if step.entropy is not None} == {"large"}


def test_a_policy_whose_script_ends_does_not_end_the_run() -> None:
    class Scripted(Policy):
        def __init__(self) -> None:
            self.script = iter(["small", "large", "small"])

        def before(self, glimpse: Glimpse) -> Any:
            return next(self.script)

    model, prompts = routed("qwen3")
    model.policy = Scripted()
    with pytest.raises(RuntimeError, match=r"Scripted\.before raised StopIteration"):
        list(model.stream(prompts[:2]))


def test_a_sequence_whose_policy_fails_may_be_cancelled() -> None:
    class Picky(Policy):
        def before(self, glimpse: Glimpse) -> ModelName:
            if glimpse.substream == 1 and glimpse.step > 1:
                raise KeyError("not this one")
            return RandomShare(0.4).before(glimpse)

    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8)
    model.policy = RandomShare(0.4)
    want = [written(result) for result in model.generate(pair.prompts[:3])]
    model.policy = Picky()
    run = model.stream(pair.prompts[:3])
    for _ in range(2):
        with pytest.raises(KeyError, match="not this one"):
            list(run)
    result = run.cancel(1)
    assert result.trace.end_reason == "cancelled"
    results = finish(run)
    assert [written(results[index]) for index in (0, 2)] == [want[0], want[2]]


def test_a_sequence_goes_on_under_another_policy() -> None:
    model, prompts = routed("qwen3")
    model.policy = RandomShare(0.5)
    run = model.stream(prompts[:1])
    for _ in range(9):
        run.step()
    saved = run.save(0)
    model.policy = EntropyThreshold(0.0, ">=")
    trace = finish(model.resume([saved]))[0].trace
    assert trace.policy == "EntropyThreshold"
    assert trace.steps[-1].model == "large"


def test_whom_a_policy_is_not_asked_for() -> None:
    """Routes that are fixed, first steps of the large model, the answer."""
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8)
    want = {route: model.generate(pair.prompts, route=route) for route in ("small", "large")}
    model.policy = policy = Recording(RandomShare(0.0))
    for route, plain in want.items():
        results = model.generate(pair.prompts, route=route)
        assert [written(result) for result in results] == [written(result) for result in plain]
        assert {result.trace.policy for result in results} == {None}
    assert policy.seen == []
    results = model.generate(pair.prompts, first_steps_large=2)
    assert min(seen.step for seen in policy.seen) == 2
    for result in results:
        assert [step.model for step in result.trace.steps[:3]] == ["large", "large", "small"]


def test_what_cannot_be_is_refused() -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed()
    for wrong in (RandomShare, "random", lambda glimpse: "small"):
        with pytest.raises(TypeError, match=r"derived from glimprouter\.policies\.Policy"):
            RoutedModel(pair.small, pair.large, pair.tokenizer, policy=wrong)  # type: ignore[arg-type]
        model.policy = wrong  # type: ignore[assignment]
        with pytest.raises(TypeError, match=r"derived from glimprouter\.policies\.Policy"):
            model.generate(pair.prompts)
    model.policy = RandomShare(0.5)
    model.policy.signals = 3  # type: ignore[assignment]
    with pytest.raises(TypeError, match="signals of RandomShare must be a mask"):
        model.generate(pair.prompts)
    model.policy = RandomShare(0.5)
    for name, value in (("threshold", 1.0), ("comparison", ">=")):
        with pytest.raises(ValueError, match=f"{name} would be ignored: the policy RandomShare"):
            model.generate(pair.prompts, **{name: value})
    with pytest.raises(ValueError, match="a RoutedModel takes a policy"):
        model.generate(pair.prompts, route="manual")
    assert len(model.generate(pair.prompts)) == len(pair.prompts)


def test_traces_of_a_policy_are_read_back(tmp_path: Any) -> None:
    model, prompts = routed("qwen3")
    model.policy = RandomShare(0.5)
    (result,) = model.generate(prompts[:1], trace_path=tmp_path / "trace.jsonl")
    read = gr.Trace.from_jsonl(tmp_path / "trace.jsonl")
    assert read.policy == "RandomShare"
    assert [step.model for step in read.steps] == [step.model for step in result.trace.steps]
