"""Rules that read written steps, and thresholds that follow what was seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from glimprouter.policies import (
    FEATURES,
    Aside,
    AsideReading,
    Glimpse,
    Judgement,
    LearnedRouter,
    MixtureThreshold,
    Policy,
    Reward,
    SpecReason,
    StepEntropy,
    StepPerplexity,
    WrittenStep,
    step_features,
)
from glimprouter.policies.mixture_threshold import crossing

GLIMPSE = Glimpse(1, 2, 3, 40, None, 1.0)
TOKENS = st.lists(st.tuples(st.floats(0, 12), st.floats(-20, 0)), min_size=1, max_size=30)


def step(tokens: Sequence[tuple[float, float]] = ((1.0, -1.0),), **others: Any) -> WrittenStep:
    entropies, logprobs = zip(*tokens, strict=True)
    values = {
        "seed": 1,
        "substream": 2,
        "index": 3,
        "position": 40,
        "model": "small",
        "rewritable": True,
        "entropy": 0.5,
        "token_ids": list(range(len(tokens))),
        "entropies": entropies,
        "logprobs": logprobs,
        "text": "a step",
        "end_reason": "delimiter",
        **others,
    }
    return WrittenStep(**values)


@given(TOKENS, st.floats(0, 12), st.floats(1, 1e6))
def test_thresholds_of_steps(
    tokens: list[tuple[float, float]], entropy: float, perplexity: float
) -> None:
    written = step(tokens)
    mean = sum(entropy for entropy, _ in tokens) / len(tokens)
    power = math.prod(math.exp(-logprob / len(tokens)) for _, logprob in tokens)
    assert written.mean_entropy == pytest.approx(mean)
    assert written.perplexity == pytest.approx(power)
    for policy, value, threshold in (
        (StepEntropy(entropy), mean, entropy),
        (StepPerplexity(perplexity), power, perplexity),
    ):
        assert policy.before(GLIMPSE) == "small"
        if abs(value - threshold) > 1e-6 * threshold:
            assert policy.after(written) == (
                "rewrite" if value > threshold else "keep",
                pytest.approx(value),
            )
    assert StepEntropy(written.mean_entropy).after(written)[0] == "keep"  # a tie


def test_a_reward_sees_question_and_steps() -> None:
    seen: list[tuple[Any, ...]] = []

    def reward(question: str | None, steps: Sequence[str], text: str) -> float:
        seen.append((question, list(steps), text))
        return len(text) / 10

    policy = Reward(reward)
    assert policy.before(GLIMPSE) == "small"
    asked = {"question": "why", "previous": ("one", "two")}
    assert policy.after(step(text="x" * 7, **asked)) == ("keep", 0.7)
    assert policy.after(step(text="x" * 6, **asked)) == ("rewrite", 0.6)
    assert seen == [("why", ["one", "two"], "x" * 7), ("why", ["one", "two"], "x" * 6)]
    assert policy.after(step(text="", rewritable=False)) == "keep"  # a reward may cost much
    assert len(seen) == 2
    for value, error in ((math.nan, ValueError), ("0.5", TypeError), (None, TypeError)):
        with pytest.raises(error, match="the reward of Reward must be a number"):
            Reward(lambda *_, value=value: value).after(step())  # type: ignore[misc]


def test_a_learned_router_decides_by_its_classifier() -> None:
    """Its verdicts are the sign of a fitted logistic function, computed here by hand."""
    generator = np.random.default_rng(3)
    steps = [
        step(
            list(zip(generator.exponential(size=8), -generator.exponential(size=8), strict=True)),
            position=int(generator.integers(100)),
        )
        for _ in range(200)
    ]
    names = ("largest_entropy", "mean_logprob", "position")
    rows = np.array(
        [[max(s.entropies), np.mean(s.logprobs), s.position] for s in steps], dtype=np.float64
    )
    np.testing.assert_allclose([step_features(s, names) for s in steps], rows)
    labels = rows[:, 0] + generator.normal(size=200) > 2.5
    router = LogisticRegression(max_iter=1000).fit(rows, labels)
    policy = LearnedRouter(router, 0.3, names)
    odds = rows @ router.coef_[0] + router.intercept_[0]
    want = 1 / (1 + np.exp(-odds)) > 0.3
    assert [policy.after(s)[0] == "rewrite" for s in steps] == want.tolist()
    assert 0 < want.sum() < 200
    assert policy.after(step(rewritable=False)) == "keep"
    assert len(step_features(steps[0])) == len(FEATURES)


@given(
    st.floats(0.05, 0.95),
    st.floats(0, 2),
    st.floats(0.1, 3),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
)
def test_where_two_densities_cross(
    weight: float, mean: float, gap: float, first: float, second: float
) -> None:
    """Against the densities themselves, on a grid between the means."""
    weights, means = np.array([weight, 1 - weight]), np.array([mean, mean + gap])
    deviations = np.array([first, second])
    tau = crossing(weights, means, deviations)
    assert means[0] <= tau <= means[1]
    grid = np.linspace(*means, 4001)
    logs = np.log(weights)[:, None] + norm.logpdf(grid, means[:, None], deviations[:, None])
    hard = logs[1] > logs[0]
    changes = np.flatnonzero(hard[1:] != hard[:-1])
    if len(changes):
        assert np.abs(grid[changes] - tau).min() <= gap / 1000
    else:
        assert tau == (means[0] if hard[2000] else means[1])


def glimpses(entropies: Any) -> list[Glimpse]:
    return [GLIMPSE._replace(entropy=float(entropy)) for entropy in entropies]


def test_a_mixture_finds_the_valley() -> None:
    """Of a spike near 0 and a hump: nearly all of each go to their model, after the warm-up."""
    generator = np.random.default_rng(5)
    easy = generator.random(3000) < 0.7
    entropies = np.where(
        easy, np.abs(generator.normal(0.05, 0.05, 3000)), generator.normal(1.6, 0.3, 3000)
    )
    policy = MixtureThreshold(start=9.0, warm_up=100)
    first = [policy.before(glimpse) for glimpse in glimpses(entropies[:100])]
    assert set(first) == {"small"}  # the threshold of the start
    large = np.array([policy.before(g) == "large" for g in glimpses(entropies[100:])])
    assert np.mean(large == ~easy[100:]) > 0.98
    assert 0.15 < policy.threshold < 1.0


def test_a_mixture_keeps_its_bounds() -> None:
    generator = np.random.default_rng(6)
    for low, high in ((2.0, 3.0), (0.0, 0.1)):
        policy = MixtureThreshold(warm_up=20, low=low, high=high, refit=1, window=60)
        for glimpse in glimpses(generator.exponential(size=80)):
            policy.before(glimpse)
        assert low <= policy.threshold <= high
    policy = MixtureThreshold(start=1.0, warm_up=4)
    for glimpse in glimpses([0.7] * 90):  # no two humps: the threshold stays
        assert policy.before(glimpse) == "small"
    assert policy.threshold == 1.0


def test_a_mixture_is_fitted_again_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no more glimpses are remembered than the first fit takes."""
    policy = MixtureThreshold(warm_up=10, refit=7, window=10)
    fits: list[int] = []
    monkeypatch.setattr(policy, "_mixture", _counted(policy._mixture, fits))
    for glimpse in glimpses(np.random.default_rng(1).exponential(size=45)):
        policy.before(glimpse)
    assert len(fits) == 5  # at 10, 17, 24, 31 and 38


def _counted(made: Any, calls: list[int]) -> Any:
    def make(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return made(*arguments, **named)

    return make


@given(st.lists(st.floats(-40, 0), min_size=10, max_size=10), st.floats(0, 9))
def test_grades_of_digits(logprobs: list[float], threshold: float) -> None:
    reading = AsideReading(tuple(logprobs))
    p = np.exp(np.array(logprobs) - max(logprobs))
    likeliest, mean = float(np.argmax(logprobs)), float((p * np.arange(10)).sum() / p.sum())
    for expected, grade in ((False, likeliest), (True, mean)):
        policy = SpecReason(threshold, expected=expected)
        assert policy.before(GLIMPSE) == "small"
        assert policy.after(step()) == "keep"  # not asked about
        said = policy.after(step(aside=reading))
        assert isinstance(said, Judgement)
        assert said.score == pytest.approx(grade, abs=1e-9)
        if abs(grade - threshold) > 1e-9:
            assert said.verdict == ("keep" if grade >= threshold else "rewrite")


def test_digits_without_probability_are_no_grade() -> None:
    with pytest.raises(ValueError, match="none of the ten digits any probability"):
        SpecReason().after(step(aside=AsideReading((-math.inf,) * 10)))


UNFITTED, WRONG = LogisticRegression(), LogisticRegression().fit([[0.0], [1.0]], [2, 3])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StepEntropy(-1.0), ValueError, "threshold"),
        (lambda: StepPerplexity(0.5), ValueError, "threshold must be at least 1"),
        (lambda: StepPerplexity(math.nan), ValueError, "threshold must be at least 1"),
        (lambda: StepPerplexity("2"), TypeError, "threshold must be a number"),  # type: ignore[arg-type]
        (lambda: Reward(0.7), TypeError, "reward must be a function"),  # type: ignore[arg-type]
        (lambda: Reward(max, math.nan), ValueError, "threshold must be a number"),  # type: ignore[arg-type]
        (lambda: SpecReason(9.5), ValueError, r"threshold must lie in \[0, 9\]"),
        (lambda: SpecReason(-1), ValueError, r"threshold must lie in \[0, 9\]"),
        (lambda: SpecReason(math.nan), ValueError, r"threshold must lie in \[0, 9\]"),
        (lambda: SpecReason("7"), TypeError, "threshold must be a number"),  # type: ignore[arg-type]
        (lambda: SpecReason(expected=1), TypeError, "True or False"),  # type: ignore[arg-type]
        (lambda: SpecReason(question=""), ValueError, "question must not be empty"),
        (lambda: SpecReason(question=[-1]), ValueError, "id of the question"),
        (lambda: SpecReason(digits="12345"), ValueError, "digits must be 10 answers"),
        (lambda: SpecReason(digits="1123456789"), ValueError, "answers must differ"),
        (lambda: SpecReason(digits=["", *"123456789"]), ValueError, "must not be empty"),
        (lambda: Aside(), ValueError, "must want answers, or the step's tokens"),
        (lambda: Aside("why?", tokens=True), ValueError, "come together"),
        (lambda: Aside("", ["7"]), ValueError, "come together"),
        (lambda: Aside(5, ["7"]), TypeError, "question must be text or a list"),  # type: ignore[arg-type]
        (lambda: Aside("why?", [1.5]), TypeError, "must be an integer"),  # type: ignore[list-item]
        (lambda: LearnedRouter(max), TypeError, "fitted classifier"),
        (lambda: LearnedRouter(UNFITTED), TypeError, "fitted classifier"),
        (lambda: LearnedRouter(WRONG), ValueError, "none of them is 1"),
        (lambda: LearnedRouter(WRONG, features=["mood"]), ValueError, "unknown feature 'mood'"),
        (lambda: MixtureThreshold(low=2.0, high=1.0), ValueError, "high must be at least low"),
        (lambda: MixtureThreshold(warm_up=1), ValueError, "warm_up"),
        (lambda: MixtureThreshold(refit=0), ValueError, "refit"),
        (lambda: MixtureThreshold(warm_up=9, window=8), ValueError, "window"),
        (lambda: MixtureThreshold(start=-1.0), ValueError, "threshold"),
    ],
)
def test_what_makes_no_sense_is_refused(
    make: Callable[[], Policy | Aside], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
