"""Steps that a policy reads once they are written, and has the large model write anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
import hf_pairs
from glimprouter.config import ModelName
from glimprouter.hf import Event, Result, RoutedModel
from glimprouter.policies import Glimpse, Policy, RandomShare, StepEntropy, Verdict, WrittenStep
from hf_rewriting import Coins, blanks, check_same
from hf_runs import entropies, finish, routed, written

pytestmark = pytest.mark.both_engines
PAIRS = ("qwen3", "two tokenizers")


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("limit", [50, 23])  # the latter ends steps, and all of them are rejected
def test_a_rewritten_step_is_the_large_models(name: str, drafts: int, limit: int) -> None:
    """As if the policy had named the final writers before; also where a budget ends the step."""
    model, prompts = drafting(name, drafts)
    model.policy = policy = Coins() if limit == 50 else Coins(0.0, 1.0)
    results = model.generate(prompts, max_think_tokens=limit)
    model.policy = policy.beforehand()
    want = model.generate(prompts, max_think_tokens=limit)
    check_same(results, want)
    dropped = {
        (step.substream, step.index): step
        for step in policy.steps
        if step.rewritable and policy.rejects(step)
    }
    assert len(dropped) > 3
    assert limit == 50 or any(step.end_reason == "budget" for step in dropped.values())
    for index, result in enumerate(results):
        kept = [step for step in result.trace.steps if step.rewritten]
        for step in kept:
            assert step.model == "large"
            drafted = dropped[index, step.index]
            blank = blanks(model, drafted.token_ids)
            assert step.rewritten == len(drafted.token_ids) - blank
        assert result.counts["small"].rewritten == sum(step.rewritten for step in kept)
        assert result.counts["large"].rewritten == 0
        assert result.counts["small"].tokens == want[index].counts["small"].tokens


def drafting(name: str, drafts: int) -> tuple[RoutedModel, list[Any]]:
    if name == "two tokenizers":
        return routed(name, drafts=drafts)
    pair = hf_pairs.pair_of(name)
    return pair.routed(temperature=0.8, drafts=drafts, max_think_tokens=50), pair.prompts


class Watching(Policy):
    """Keeps everything, and remembers it."""

    def __init__(self) -> None:
        self.steps: list[WrittenStep] = []

    def before(self, glimpse: Glimpse) -> ModelName:
        return RandomShare(0.4).before(glimpse)

    def after(self, step: WrittenStep) -> Verdict:
        self.steps.append(step)
        return "keep"


@pytest.mark.parametrize("drafts", [0, 3])
def test_what_is_told_of_a_step(drafts: int) -> None:
    """Every token's entropy and log-probability against float64 of a full forward pass."""
    model, prompts = drafting("qwen3", drafts)
    model.policy = RandomShare(0.4)
    want = model.generate(prompts, seeds=3, first_steps_large=2)
    model.policy = policy = Watching()
    results = model.generate(prompts, seeds=3, first_steps_large=2)
    check_same(results, want)
    assert {step.model for step in policy.steps} == {"small", "large"}
    told = {(step.substream, step.index): step for step in policy.steps}
    assert len(told) == len(policy.steps)
    for index, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        ids = torch.tensor([[*prompt, *result.token_ids]])
        with torch.inference_mode():
            logits = {name: m(ids).logits[0].double() for name, m in models_of(model).items()}
        start = 0
        for step in result.trace.steps:
            own = told[index, step.index]
            assert (own.seed, own.position, own.text) == (3, start, step.text)
            assert (own.entropy, own.model, own.end_reason) == (
                step.entropy,
                step.model,
                step.end_reason,
            )
            assert own.rewritable == (step.model == "small" and step.entropy is not None)
            end = start + step.num_tokens
            assert list(own.token_ids) == result.token_ids[start:end]
            blank = blanks(model, own.token_ids)  # the small model's
            rows = [logits["small" if k < blank else step.model] for k in range(step.num_tokens)]
            places = range(len(prompt) + start - 1, len(prompt) + end - 1)
            check_tokens(own, [row[place] for row, place in zip(rows, places, strict=True)])
            start = end


def models_of(model: RoutedModel) -> dict[str, Any]:
    return {"small": model.small, "large": model.large}


def check_tokens(step: WrittenStep, logits: list[torch.Tensor]) -> None:
    if step.entropy is None:
        return  # the large model wrote the white space in front as well
    log_p = torch.log_softmax(torch.stack(logits)[:, : hf_pairs.VOCABULARY], -1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    chosen = log_p[torch.arange(len(logits)), torch.tensor(step.token_ids)]
    assert step.entropies == pytest.approx(entropies.tolist(), rel=2e-3, abs=2e-3)
    assert step.logprobs == pytest.approx(chosen.tolist(), rel=2e-3, abs=2e-3)
    assert step.mean_entropy == pytest.approx(float(entropies.mean()), rel=2e-3, abs=2e-3)
    assert step.perplexity == pytest.approx(float((-chosen.mean()).exp()), rel=5e-3)


def test_an_end_of_thinking_may_be_rewritten() -> None:
    """The trained small model ends its thinking; the large one does it in its place."""
    pair = hf_pairs.pair_of("trained")
    model = pair.routed(temperature=0.0, max_think_tokens=120)

    class Ending(Policy):
        ends = 0

        def before(self, glimpse: Glimpse) -> ModelName:
            return "small"

        def after(self, step: WrittenStep) -> Verdict:
            if step.end_reason != "think_end":
                return "keep"
            self.ends += step.rewritable
            return "rewrite"

    model.policy = policy = Ending()
    results = model.generate(pair.prompts)
    assert policy.ends == sum(result.counts["small"].rewritten > 0 for result in results) > 0
    assert all(result.trace.answer for result in results)


def text_of(events: list[Event]) -> str:
    return "".join(event.text or "" for event in events if event.kind == "token")


@pytest.mark.parametrize("name", PAIRS)
def test_events_take_nothing_back(name: str) -> None:
    """The tokens that come are those that stay; each decision comes once."""
    model, prompts = routed(name)
    model.policy = Coins()
    want = model.generate(prompts[:3])
    events = list(model.stream(prompts[:3]))
    for index, result in enumerate(want):
        own = [event for event in events if event.sequence == index]
        assert own[-1].result is not None
        assert written(own[-1].result) == written(result)
        routes = [event for event in own if event.kind == "route"]
        decided = [step for step in result.trace.steps if step.entropy is not None]
        assert [event.entropy for event in routes] == [step.entropy for step in decided]
        assert [event.model for event in routes] == [step.model for step in decided]
        if name != "two tokenizers":
            ids = [event.token_id for event in own if event.token_id is not None]
            assert ids == result.token_ids
        assert text_of(own).strip() == result.text.strip()


@pytest.mark.parametrize("name", PAIRS)
def test_forked_rewound_and_saved(name: str) -> None:
    """At every place of a run, in the middle of steps that wait to be kept as well."""
    model, prompts = routed(name)
    model.policy = Coins()
    want = written(model.generate(prompts[:1])[0])
    for passes in (5, 12, 19):
        run = model.stream(prompts[:1])
        events = []
        for _ in range(passes):
            events += run.step()
        twin = run.fork(0, substream=0)
        saved = run.save(0)
        rest = list(run)
        results = {e.sequence: e.result for e in rest if e.result is not None}
        assert [written(results[0]), written(results[twin])] == [want, want]
        own = [event for event in [*events, *rest] if event.sequence == 0]
        loaded = list(model.resume([saved]))
        assert loaded[-1].result is not None
        assert written(loaded[-1].result) == want
        if name != "two tokenizers":
            ids = [event.token_id for event in own if event.token_id is not None]
            assert ids == want[0]
            given = [event.token_id for event in events if event.token_id is not None]
            after = [event.token_id for event in loaded if event.token_id is not None]
            assert given + after == want[0]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
def test_events_after_a_rewind(count: int) -> None:
    model, prompts = routed("qwen3")
    model.policy = Coins()
    want = written(model.generate(prompts[:1])[0])
    run = model.stream(prompts[:1])
    while len(run.generated(0)) < 12:
        run.step()
    shown = run._sequences.record(0).shown
    before = run.generated(0)
    run.rewind(0, count)
    assert run.generated(0) == before[: len(before) - count]
    kept = min(shown, len(before) - count)
    events = list(run)
    ids = [event.token_id for event in events if event.token_id is not None]
    assert [*before[:kept], *ids] == want[0]
    assert written(events[-1].result) == want  # type: ignore[arg-type]


class Failing(Coins):
    """Raises once, at a call of a given number, in ``after``."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def after(self, step: WrittenStep) -> Verdict:
        self.at -= 1
        if self.at == 0:
            raise self.error
        return super().after(step)


def finish_after(error: type[BaseException], run: Any) -> dict[int, Result]:
    """The results of a run that raises once on its way."""
    results: dict[int, Result] = {}

    def go_on() -> None:
        for event in run:
            if event.result is not None:
                results[event.sequence] = event.result

    with pytest.raises(error):
        go_on()
    go_on()
    return results


@pytest.mark.parametrize("error", [KeyError("no rule"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 6])
@pytest.mark.parametrize("drafts", [0, 3])
def test_a_policy_that_raises_is_asked_again(error: BaseException, at: int, drafts: int) -> None:
    model, prompts = drafting("qwen3", drafts)
    model.policy = plain = Coins()
    want = [written(result) for result in model.generate(prompts)]
    model.policy = policy = Failing(at, error)
    results = finish_after(type(error), model.stream(prompts))
    assert [written(results[index]) for index in range(len(prompts))] == want
    asked = sorted((step.substream, step.index, step.model) for step in policy.steps)
    assert asked == sorted((step.substream, step.index, step.model) for step in plain.steps)


@pytest.mark.parametrize("place", ["router.rewind", "router.decide", "engine.rewind", "drop"])
@pytest.mark.parametrize("behind", [False, True])
def test_interrupts_between_router_and_record(
    place: str, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a rewriting, or a decision, is cut off, the next call goes on with it."""
    model, prompts = routed("qwen3")
    model.policy = Coins()
    want = [written(result) for result in model.generate(prompts)]
    glimpsed = [entropies(result) for result in model.generate(prompts)]
    run = model.stream(prompts)
    for _ in range(3):
        run.step()
    sequences = run._sequences
    owner, name = {
        "router.rewind": (sequences.router, "rewind"),
        "router.decide": (sequences.router, "decide"),
        "engine.rewind": (sequences.engine, "rewind"),
        "drop": (type(sequences.record(0)), "drop_step"),
    }[place]
    original = getattr(owner, name)

    def interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        if behind:
            original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    results = finish_after(KeyboardInterrupt, run)
    assert [written(results[index]) for index in range(len(prompts))] == want
    for index, plain in enumerate(glimpsed):
        assert entropies(results[index]) == pytest.approx(plain, rel=1e-3)


def test_a_sequence_whose_policy_fails_may_be_cancelled() -> None:
    class Picky(Coins):
        def after(self, step: WrittenStep) -> Verdict:
            if step.substream == 1 and step.index > 0:
                raise KeyError("not this one")
            return super().after(step)

    model, prompts = routed("qwen3")
    model.policy = Coins()
    want = [written(result) for result in model.generate(prompts[:3])]
    model.policy = Picky()
    run = model.stream(prompts[:3])
    for _ in range(2):
        with pytest.raises(KeyError, match="not this one"):
            list(run)
    result = run.cancel(1)
    assert result.trace.end_reason == "cancelled"
    results = finish(run)
    assert [written(results[index]) for index in (0, 2)] == [want[0], want[2]]


def test_what_is_no_verdict_is_told_so() -> None:
    class Nothing(Coins):
        verdict: Any = None

        def after(self, step: WrittenStep) -> Verdict:
            if self.verdict == "stop":
                raise StopIteration
            return self.verdict  # type: ignore[no-any-return]

    model, prompts = routed("qwen3")
    model.policy = policy = Nothing()
    with pytest.raises(ValueError, match=r'Nothing\.after must return "keep" or .* got None'):
        model.generate(prompts[:2])
    policy.verdict = "stop"
    with pytest.raises(RuntimeError, match=r"Nothing\.after raised StopIteration"):
        model.generate(prompts[:2])


def test_thresholds_of_whole_steps() -> None:
    """Nothing is above an infinite one; everything above 0; half of the steps above the median."""
    model, prompts = routed("qwen3")
    model.policy = watching = Watching()
    watching.before = lambda glimpse: "small"  # type: ignore[method-assign, assignment]
    small = model.generate(prompts)
    means = [step.mean_entropy for step in watching.steps]
    model.policy = StepEntropy(float("inf"))
    assert [written(r) for r in model.generate(prompts)] == [written(r) for r in small]
    model.policy = StepEntropy(0.0)
    large = model.generate(prompts)
    assert {s.model for r in large for s in r.trace.steps if s.entropy is not None} == {"large"}
    model.policy = StepEntropy(float(np.median(means)))
    shares = [result.trace.large_step_share for result in model.generate(prompts)]
    assert 0.1 < np.mean(shares) < 0.9


def test_fixed_routes_are_not_read() -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(temperature=0.8)
    want = model.generate(pair.prompts, route="small")
    model.policy = policy = Coins()
    results = model.generate(pair.prompts, route="small")
    assert [written(result) for result in results] == [written(result) for result in want]
    assert policy.steps == []


def test_traces_say_what_was_rewritten(tmp_path: Any) -> None:
    model, prompts = routed("qwen3")
    model.policy = Coins(0.0, 1.0)
    (result,) = model.generate(prompts[:1], trace_path=tmp_path / "trace.jsonl")
    read = gr.Trace.from_jsonl(tmp_path / "trace.jsonl")
    assert [step.rewritten for step in read.steps] == [s.rewritten for s in result.trace.steps]
    assert sum(step.rewritten for step in read.steps) > 0
