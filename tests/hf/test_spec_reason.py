"""SpecReason in runs: the large model's grade of each step, what follows from it, and its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
import hf_pairs
import slow_steps
from glimprouter.hf import Result, RoutedModel
from glimprouter.policies import (
    Aside,
    EntropyThreshold,
    Judgement,
    Policy,
    SpecReason,
    Verdict,
    WrittenStep,
)
from glimprouter.policies.spec_reason import QUESTION
from hf_pairs import Pair
from hf_rewriting import Coins, check_same
from hf_runs import begun, finish, finish_with_failures, routed, sector_bytes, written
from slow_steps import MARGIN, SlowRun, log_p, write_answer, write_step

pytestmark = pytest.mark.both_engines
PAIRS = ("qwen3", "two tokenizers")
DIGITS = "0123456789"
LIMITS = {
    "max_think_tokens": slow_steps.THINK,
    "max_answer_tokens": slow_steps.ANSWER,
    "max_step_tokens": slow_steps.CAP,
}


class Watched(SpecReason):
    """Remembers the steps that it was asked about; ``forced`` is said whatever the grade."""

    def __init__(self, threshold: float = 4.5, *, forced: Verdict | None = None, **own: Any):
        super().__init__(threshold, **{"expected": True, **own})
        self.forced, self.steps = forced, list[WrittenStep]()

    def after(self, step: WrittenStep) -> Verdict | Judgement:
        self.steps.append(step)
        verdict = super().after(step)
        if self.forced is None or not isinstance(verdict, Judgement):
            return verdict
        return Judgement(self.forced, verdict.score)

    def grades(self) -> dict[tuple[int, int], float]:
        asked = [step for step in self.steps if step.aside is not None]
        return {(s.substream, s.index): self.grade(s.aside) for s in asked if s.aside is not None}


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def grade_of(run: SlowRun, pair: Pair, ids: Sequence[int], expected: bool) -> float:
    """From one float64 pass over everything, the question behind it."""
    digits = [ids_of(pair.tokenizer, digit)[0] for digit in DIGITS]
    last = log_p(pair.large, [*ids, *ids_of(pair.tokenizer, QUESTION)])[-1][digits].exp()
    if expected:
        return float((last * torch.arange(10)).sum() / last.sum())
    run.note(float((last / last.sum()).topk(2).values.diff().abs()))
    return int(last.argmax())


def slow_run(pair: Pair, prompt: list[int], threshold: float, expected: bool) -> SlowRun:
    """The rule as the paper says it: the small model writes, the large one grades or rewrites."""
    run = SlowRun()
    while len(run.tokens) < slow_steps.THINK:
        step, writer = write_step(run, pair, prompt, "small"), "small"
        grade = grade_of(run, pair, [*prompt, *run.tokens, *step], expected)
        run.note(abs(grade - threshold))
        if grade < threshold:
            step, writer = write_step(run, pair, prompt, "large"), "large"
        run.tokens += step
        run.writers.append(writer)
        run.scores.append(grade)
    write_answer(run, pair, prompt)
    return run


@pytest.mark.parametrize(("family", "expected"), [("qwen3", True), ("gemma3", False)])
def test_against_a_loop_without_cache(family: str, expected: bool) -> None:
    """Texts, writers and grades; in a batch and alone, with drafts and without."""
    pair = hf_pairs.pair_of(family)
    model = pair.routed(**LIMITS)
    model.policy = seen = Watched(forced="keep", expected=expected)
    model.generate(pair.prompts)
    grades = sorted(seen.grades().values())
    threshold = min(max(grades[len(grades) // 2] - 1e-3, 0.0), 9.0)
    policy = SpecReason(threshold, expected=expected)
    slow = [slow_run(pair, prompt, threshold, expected) for prompt in pair.prompts]
    certain = [index for index, run in enumerate(slow) if run.closest > MARGIN]
    assert len(certain) > 2, "too little would be compared"
    for drafts in (0, 3):
        model = pair.routed(drafts=drafts, **LIMITS)
        model.policy = policy
        check(model.generate(pair.prompts), slow, certain)
    check([model.generate([prompt])[0] for prompt in pair.prompts], slow, certain)
    writers = [writer for run in slow for writer in run.writers]
    assert 0.1 < writers.count("large") / len(writers) < 0.9


def check(results: list[Result], slow: list[SlowRun], certain: list[int]) -> None:
    for index in certain:
        steps = results[index].trace.steps
        assert results[index].token_ids == slow[index].tokens
        assert [step.model for step in steps] == slow[index].writers
        scores = [step.score for step in steps]
        assert scores == pytest.approx(slow[index].scores, abs=2e-3)


@pytest.mark.parametrize("name", [*PAIRS, "trained"])
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_always_or_never_stays(name: str, drafts: int, temperature: float) -> None:
    """Every step kept is the small model alone; every step rejected the large one."""
    model, prompts = pair_with(name, drafts=drafts, temperature=temperature)
    for verdict, threshold in (("keep", math.inf), ("rewrite", 0.0)):
        model.policy = policy = Watched(forced=verdict)  # type: ignore[arg-type]
        got = model.generate(prompts)
        assert len(policy.grades()) > len(prompts)
        model.policy = EntropyThreshold(threshold, ">=")
        check_same(got, model.generate(prompts))
        for result in got:
            large = result.counts["large"]
            asked = sum(step.score is not None for step in result.trace.steps)
            assert large.asides >= asked > 0
            assert large.passes > large.asides
            assert result.counts["small"].asides == result.counts["small"].aside_tokens == 0


def pair_with(name: str, **options: Any) -> tuple[RoutedModel, list[Any]]:
    if name == "two tokenizers":
        return routed(name, drafts=options["drafts"])
    pair = hf_pairs.pair_of(name)
    return pair.routed(**options, max_think_tokens=50), pair.prompts


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_writers_named_beforehand(name: str) -> None:
    """A run that asks nothing, and is told the writers, writes the same: also two tokenizers."""
    model, prompts = routed(name)
    model.policy = policy = Watched(4.5)
    grades = first_grades(model, prompts)
    model.policy = policy = Watched(float(np.median(list(grades.values()))))
    got = model.generate(prompts)
    writers = {key: policy.threshold <= grade for key, grade in policy.grades().items()}
    assert len(set(writers.values())) == 2

    class Told(Policy):
        def before(self, glimpse: Any) -> Any:
            return "small" if writers[glimpse.substream, glimpse.step] else "large"

    model.policy = Told()
    check_same(got, model.generate(prompts))


def first_grades(model: RoutedModel, prompts: list[Any]) -> dict[tuple[int, int], float]:
    model.policy = policy = Watched(forced="keep")
    model.generate(prompts)
    return policy.grades()


def test_grades_over_another_tokenizer() -> None:
    """Against a float64 pass over the large model's own tokens of prompt, text and question."""
    model, prompts = routed("two tokenizers")
    model.policy = policy = Watched(forced="keep")
    results = model.generate(prompts)
    tokenizer, compared = model.large_tokenizer, 0
    for step in policy.steps:
        if step.aside is None:
            continue
        (result,) = [r for r in results if r.trace.substream == step.substream]
        run = model.stream(prompts)
        del run
        text = "".join([*step.previous, step.text])
        if "\N{REPLACEMENT CHARACTER}" in text or text not in result.text:
            continue
        compared += graded_as(model, tokenizer, prompts[step.substream], step)
    assert compared > 5


def graded_as(model: RoutedModel, tokenizer: Any, prompt: Any, step: WrittenStep) -> bool:
    """Whether the tokens that the large model has of each step are those of its tokenizer."""
    assert model.translation is not None
    ids = list(prompt.large)
    for text in (*step.previous, step.text):
        ids += model.translation.tokenize(1, text.encode())
    digits = [ids_of(tokenizer, f"{QUESTION}{digit}")[-1] for digit in DIGITS]
    with torch.inference_mode():
        logits = model.large(torch.tensor([[*ids, *ids_of(tokenizer, QUESTION)]])).logits[0, -1]
    width = model.large_boundary.vocab_size
    values = logits[:width].double().log_softmax(-1)[digits]
    assert step.aside is not None
    return bool(np.allclose(step.aside.answers, values.tolist(), atol=2e-3))
