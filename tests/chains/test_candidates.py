"""Steps chosen among drafts: what stays is what a run with these writers and numbers writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import hf_pairs
from glimprouter.chains import (
    ArbitrageOracle,
    CandidateResult,
    CandidateRule,
    Choice,
    SpecCoT,
    write_with_candidates,
)
from glimprouter.hf import RoutedModel
from glimprouter.policies import AsideReading, Policy, WrittenStep
from hf_runs import routed, written

pytestmark = pytest.mark.both_engines


class First(CandidateRule):
    """Keeps the draft with the chain's own numbers, or has the large model write."""

    def __init__(self, candidates: int, kept: int | None = 0) -> None:
        self.candidates, self.kept = candidates, kept
        self.drafts: list[Sequence[WrittenStep]] = []

    def choose(self, drafts: Sequence[WrittenStep]) -> Choice | None:
        self.drafts.append(drafts)
        return None if self.kept is None else Choice(self.kept, [0.0] * len(drafts))


@pytest.mark.parametrize("name", ["qwen3", "two tokenizers"])
@pytest.mark.parametrize("kept", [0, None])
def test_the_chains_own_draft_is_the_small_model_alone(name: str, kept: int | None) -> None:
    """And what rejects every draft is the large model alone, with the same random numbers."""
    model, prompts = routed(name, max_sequences=8)  # two chains of three sequences at a time
    rule = First(2, kept)
    got = write_with_candidates(model, prompts, rule, seeds=3)
    model.policy = None
    alone = [math.inf, 0.0][kept is None]
    want = model.generate(prompts, seeds=3, threshold=alone, comparison=">=")
    assert [written(one.result) for one in got] == [written(result) for result in want]
    texts = [[draft.text for draft in drafts] for drafts in rule.drafts]
    assert sum(len(set(each)) > 1 for each in texts) > len(texts) / 2
    for one in got:
        assert len(one.choices) >= len(one.result.trace.steps)
        small = one.dropped["small"]
        assert small.passes > 0
        assert small.tokens > 0


def test_each_result_is_told_when_it_ends() -> None:
    """While others are still written: a caller that stops has those that were told."""
    model, prompts = routed("qwen3", max_sequences=4)  # two chains of two sequences at a time
    told: list[tuple[int, CandidateResult]] = []

    class Stopped(Exception):
        pass

    def stop(place: int, one: CandidateResult) -> None:
        told.append((place, one))
        if len(told) == len(prompts) - 1:
            raise Stopped

    with pytest.raises(Stopped):
        write_with_candidates(model, prompts, First(1), seeds=3, finished=stop)
    every: dict[int, CandidateResult] = {}
    got = write_with_candidates(model, prompts, First(1), seeds=3, finished=every.__setitem__)
    assert [every[place] for place in range(len(prompts))] == got
    for place, one in told:
        assert written(one.result) == written(got[place].result)


def test_spec_cot_against_whole_passes() -> None:
    """Each draft's score, and which one was kept, from a pass over the text without cache."""
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.9, max_think_tokens=50, max_sequences=12)
    seen: list[tuple[Sequence[WrittenStep], Choice | None]] = []

    class Watched(SpecCoT):
        def choose(self, drafts: Sequence[WrittenStep]) -> Choice | None:
            seen.append((drafts, super().choose(drafts)))
            return seen[-1][1]

    write_with_candidates(model, pair.prompts, Watched(3))
    best = [max(choice.scores) for _, choice in seen if choice is not None]
    best = sorted(value for value in best if value > -math.inf)
    threshold = best[len(best) // 2] + 1e-4
    seen.clear()
    got = write_with_candidates(model, pair.prompts, Watched(3, threshold))
    accepted, seen = 0, [own for own in seen if all(draft.aside for draft in own[0])]
    for drafts, choice in seen:
        key = chain_of(got, drafts[0])
        before = [*pair.prompts[key], *got[key].result.token_ids[: drafts[0].position]]
        scores = [mean_logprob(pair.large, before, draft.token_ids) for draft in drafts]
        assert (choice is not None) == (max(scores) >= threshold)
        if choice is not None:
            assert list(choice.scores) == pytest.approx(scores, abs=2e-3)
            kept = drafts[choice.kept or 0]
            end = kept.position + len(kept.token_ids)
            assert got[key].result.token_ids[kept.position : end] == list(kept.token_ids)
            accepted += 1
    assert 0.1 < accepted / len(seen) < 0.9
    for one in got:
        writers = ["large" if choice.kept is None else "small" for choice in one.choices]
        assert [step.model for step in one.result.trace.steps] == writers
        assert 0 <= writers.count("small") - one.result.counts["large"].asides <= 1
        assert one.dropped["large"].asides > 0


def chain_of(results: list[CandidateResult], step: WrittenStep) -> int:
    """The prompt of a step: its first draft has the chain's own key."""
    return step.substream


def mean_logprob(model: Any, before: Sequence[int], ids: Sequence[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1]
    values = logits[:, : hf_pairs.VOCABULARY].double().log_softmax(-1)
    return float(values[torch.arange(len(ids)), torch.tensor(ids)].mean())


def test_the_large_model_reads_the_prompt_once() -> None:
    """Whatever the number of drafts; from step to step the one that was kept has been read."""
    pair = hf_pairs.pair_of("qwen3")
    prompt = (pair.prompts[0] * 40)[:300]
    model = pair.routed(temperature=0.9, max_think_tokens=40, max_answer_tokens=4, drafts=0)
    read = 0

    def count(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal read
        read += arguments[0].numel()

    hook = pair.large.get_input_embeddings().register_forward_pre_hook(count)
    try:
        (one,) = write_with_candidates(model, [prompt], SpecCoT(3))
    finally:
        hook.remove()
    spent = [one.result.counts["large"], one.dropped["large"]]
    steps = sum(own.tokens + own.aside_tokens + own.asides for own in spent)
    assert len(one.choices) > 2
    assert len(prompt) <= read <= len(prompt) + steps + 3


@pytest.mark.parametrize("name", ["qwen3", "two tokenizers"])
def test_arbitrage_keeps_the_better_step(name: str) -> None:
    """As a run that is told the writers; the scores are those of the texts."""

    def score(question: str | None, previous: Sequence[str], text: str) -> float:
        return sum(map(ord, text)) % 97 + len(previous)

    model, prompts = routed(name, max_sequences=8)
    got = write_with_candidates(model, prompts, ArbitrageOracle(score, 5.0))
    writers: dict[tuple[int, int], str] = {}
    for key, one in enumerate(got):
        for index, choice in enumerate(one.choices):
            small, large = choice.scores
            assert (choice.kept is None) == (large - small > 5.0)
            writers[key, index] = "large" if choice.kept is None else "small"
        for index, step in enumerate(one.result.trace.steps):
            texts = [own.text for own in one.result.trace.steps[:index]]
            mine = one.choices[index].scores[writers[key, index] == "large"]
            assert score(None, texts, step.text) == mine
    assert set(writers.values()) == {"small", "large"}

    class Told(Policy):
        def before(self, glimpse: Any) -> Any:
            return writers[glimpse.substream, glimpse.step]

    model.policy = Told()
    assert [written(one.result) for one in got] == [written(r) for r in model.generate(prompts)]


def test_chains_that_end_by_themselves() -> None:
    """The trained pair closes its thinking: also in drafts."""
    pair = hf_pairs.pair_of("trained")
    model = pair.routed(temperature=0.7, max_think_tokens=200, max_answer_tokens=16)
    got = write_with_candidates(model, pair.prompts[:3], SpecCoT(3))
    assert {one.result.trace.end_reason for one in got} <= {"eos", "answer_budget"}
    assert all(one.result.trace.answer for one in got)
    again = write_with_candidates(model, pair.prompts[:3], SpecCoT(3))
    assert [written(one.result) for one in again] == [written(one.result) for one in got]
    alone = write_with_candidates(model, pair.prompts[:1], SpecCoT(3))
    assert written(alone[0].result) == written(got[0].result)


def test_held_sequences_wait() -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed()
    want = [written(result) for result in model.generate(pair.prompts[:2])]
    run = model.stream(pair.prompts[:2])
    run.hold(1)
    first = {event.sequence: event.result for event in run if event.result is not None}
    assert list(first) == [0]
    assert run.sequences == [1]
    assert run.step() == []
    run.go_on(1, one_step=True)
    events = list(run)
    assert [event.kind for event in events if event.kind in ("step", "done")] == ["step"]
    assert run.counts(1)["small"].passes > 0
    run.go_on(1)
    rest = {event.sequence: event.result for event in run if event.result is not None}
    assert first[0] is not None
    assert rest[1] is not None
    assert [written(first[0]), written(rest[1])] == want


def small_pair() -> RoutedModel:
    model: RoutedModel = hf_pairs.pair_of("qwen3").routed(max_sequences=2, temperature=0.7)
    return model


class Broken(SpecCoT):
    def choose(self, drafts: Sequence[WrittenStep]) -> Choice | None:
        self._scores([_replaced(drafts[0])])
        return None


def _replaced(step: WrittenStep) -> WrittenStep:
    import dataclasses

    return dataclasses.replace(step, aside=AsideReading((), (math.nan,)))


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "one candidate": (lambda: SpecCoT(1), ValueError, "candidates must lie in"),
    "no number": (lambda: SpecCoT(2.5), TypeError, "candidates must be an integer"),  # type: ignore[arg-type]
    "no threshold": (lambda: SpecCoT(2, math.nan), ValueError, "threshold must be a number"),
    "no scorer": (lambda: ArbitrageOracle(3), TypeError, "score must be a function"),  # type: ignore[arg-type]
    "no tau": (lambda: ArbitrageOracle(max, math.nan), ValueError, "tau must be"),  # type: ignore[arg-type]
    "no rule": (lambda: run(None), TypeError, "rule must be a CandidateRule"),
    "too many": (lambda: run(SpecCoT(2)), ValueError, "holds 2; make it with a larger"),
    "greedy": (lambda: run(SpecCoT(2), temperature=0.0), ValueError, "drafts at temperature 0"),
    "no route": (lambda: run(First(1), route="small"), ValueError, 'need route="auto"'),
    "first steps": (lambda: run(First(1), first_steps_large=1), ValueError, "first_steps_large=0"),
    "infinite": (lambda: run(ArbitrageOracle(lambda *_: math.inf)), ValueError, "must be finite"),
}


def run(rule: Any, **options: Any) -> None:
    write_with_candidates(small_pair(), hf_pairs.raw_prompts()[:1], rule, **options)


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_score_that_is_no_number() -> None:
    model = hf_pairs.pair_of("qwen3").routed(temperature=0.7)
    with pytest.raises(ValueError, match="the score of a draft must be a number"):
        write_with_candidates(model, hf_pairs.raw_prompts()[:1], Broken(2))
