"""SpecReason in runs: the large model's grade of each step, what follows from it, and its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import hf_pairs
import slow_steps
from glimprouter.hf import Result, RoutedModel
from glimprouter.policies import EntropyThreshold, Policy, SpecReason, WrittenStep
from glimprouter.policies.spec_reason import QUESTION
from hf_asides import Graded
from hf_pairs import Pair
from hf_rewriting import check_same
from hf_runs import routed
from slow_steps import MARGIN, SlowRun, log_p, write_answer, write_step

pytestmark = pytest.mark.both_engines
PAIRS = ("qwen3", "two tokenizers")
DIGITS = "0123456789"
# Ten tokens that the random models hold about equally likely, so that several are the likeliest.
ALIKE = (131, 227, 166, 70, 49, 250, 165, 253, 155, 104)
KINDS = (
    ("qwen3", 3, 0.8),
    ("qwen3", 0, 0.0),
    ("two tokenizers", 0, 0.8),
    ("two tokenizers", 3, 0.8),
    ("trained", 3, 0.0),
)
LIMITS = {
    "max_think_tokens": slow_steps.THINK,
    "max_answer_tokens": slow_steps.ANSWER,
    "max_step_tokens": slow_steps.CAP,
}


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def grade_of(run: SlowRun, pair: Pair, ids: Sequence[int], policy: SpecReason) -> float:
    """From one pass over everything, the question behind it."""
    digits = [ids_of(pair.tokenizer, d)[0] if isinstance(d, str) else d for d in answers_of(policy)]
    last = log_p(pair.large, [*ids, *ids_of(pair.tokenizer, QUESTION)])[-1][digits].exp()
    if policy.expected:
        return float((last * torch.arange(10)).sum() / last.sum())
    run.note(float((last / last.sum()).topk(2).values.diff().abs()))
    return int(last.argmax())


def answers_of(policy: Policy) -> Sequence[str | int]:
    assert policy.aside is not None
    return policy.aside.answers


def slow_run(pair: Pair, prompt: list[int], policy: SpecReason) -> SlowRun:
    """The rule as the paper says it: the small model writes, the large one grades or rewrites."""
    run = SlowRun()
    while len(run.tokens) < slow_steps.THINK:
        step, writer = write_step(run, pair, prompt, "small"), "small"
        text = pair.tokenizer.decode(step)
        if not text.strip(slow_steps.WHITE_SPACE):  # no word to rewrite: the budget is spent
            run.tokens += step
            run.writers.append(writer)
            run.scores.append(None)
            break
        grade = grade_of(run, pair, [*prompt, *run.tokens, *step], policy)
        run.note(abs(grade - policy.threshold))
        if grade < policy.threshold:
            step, writer = write_step(run, pair, prompt, "large"), "large"
        run.tokens += step
        run.writers.append(writer)
        run.scores.append(grade)
    write_answer(run, pair, prompt)
    return run


@cache
def slow_runs(family: str, expected: bool) -> tuple[SpecReason, list[SlowRun]]:
    """A rule that rejects about half of the steps, and what it leads to; for both engines."""
    pair = hf_pairs.pair_of(family)
    digits: Any = DIGITS if expected else ALIKE
    model = pair.routed(**LIMITS)
    model.policy = seen = Graded(forced="keep", expected=expected, digits=digits)
    model.generate(pair.prompts)
    grades = sorted(seen.grades().values())
    policy = SpecReason(grades[len(grades) // 2] - 1e-3, expected=expected, digits=digits)
    return policy, [slow_run(pair, prompt, policy) for prompt in pair.prompts]


@pytest.mark.parametrize(("family", "expected"), [("qwen3", False), ("gemma3", True)])
def test_against_a_loop_without_cache(family: str, expected: bool) -> None:
    """Texts, writers and grades; in a batch and alone, with drafts and without."""
    pair = hf_pairs.pair_of(family)
    policy, slow = slow_runs(family, expected)
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


@pytest.mark.parametrize(("name", "drafts", "temperature"), KINDS)
def test_what_always_or_never_stays(name: str, drafts: int, temperature: float) -> None:
    """Every step kept is the small model alone; every step rejected the large one."""
    model, prompts = pair_with(name, drafts=drafts, temperature=temperature)
    for verdict, threshold in (("keep", math.inf), ("rewrite", 0.0)):
        model.policy = policy = Graded(forced=verdict)  # type: ignore[arg-type]
        got = model.generate(prompts)
        assert len(policy.grades()) > len(prompts)
        model.policy = EntropyThreshold(threshold, ">=")
        check_same(got, model.generate(prompts))
        for index, result in enumerate(got):
            large = result.counts["large"]
            asked = sum(key == index for key, _ in policy.grades())
            assert large.asides == asked > 0
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
    model.policy = policy = Graded(4.5)
    grades = first_grades(model, prompts)
    model.policy = policy = Graded(float(np.median(list(grades.values()))))
    got = model.generate(prompts)
    writers = {key: policy.threshold <= grade for key, grade in policy.grades().items()}
    assert len(set(writers.values())) == 2

    class Told(Policy):
        def before(self, glimpse: Any) -> Any:
            return "small" if writers[glimpse.substream, glimpse.step] else "large"

    model.policy = Told()
    check_same(got, model.generate(prompts))


def first_grades(model: RoutedModel, prompts: list[Any]) -> dict[tuple[int, int], float]:
    model.policy = policy = Graded(forced="keep")
    model.generate(prompts)
    return policy.grades()


def test_grades_over_another_tokenizer() -> None:
    """Against a float64 pass over the large model's own tokens of prompt, text and question."""
    model, prompts = routed("two tokenizers")
    model.policy = policy = Graded(forced="keep")
    model.generate(prompts)
    compared = others = 0
    for step in policy.steps:
        if step.aside is None:
            continue
        text = "".join([*step.previous, step.text])
        if "\N{REPLACEMENT CHARACTER}" not in text:
            compared += graded_as(model, prompts[step.substream], step)
            others += 1
    assert compared == others > 5


def graded_as(model: RoutedModel, prompt: Any, step: WrittenStep) -> bool:
    """Whether the answers are those behind each step in the tokens of the large tokenizer."""
    assert model.translation is not None
    tokenizer = model.large_tokenizer
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
