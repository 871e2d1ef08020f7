"""What a plan refuses, before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from glimprouter.evaluation import Plan
from glimprouter.evaluation.plan import Arm, PolicySpec
from glimprouter.evaluation.prices import Prices, prices_of_weights
from glimprouter.evaluation.rules import RULES

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown policy": ({"policies": ["oracle"]}, "unknown policy 'oracle'; there are small-alone,"),
    "unknown parameter": (
        {"policies": ["entropy:tau=1"]},
        "entropy has no parameter 'tau'; it has",
    ),
    "no number": ({"policies": ["entropy:threshold=high"]}, "threshold must be a number, got"),
    "not finite": ({"policies": ["entropy:threshold=inf"]}, "must be a finite number, got 'inf'"),
    "out of range": ({"policies": ["margin:threshold=2"]}, r"policy margin: .* lie in \[0, 1\]"),
    "negative": ({"policies": ["entropy:threshold=-1"]}, "policy entropy: threshold must lie in"),
    "no equals sign": ({"policies": ["entropy:1.0"]}, "give parameters as NAME=NUMBER, got '1.0'"),
    "twice": ({"policies": ["entropy:threshold=1,threshold=2"]}, "gives 'threshold' twice"),
    "ratio": (
        {"policies": ["hysteresis:ratio=2"]},
        r"policy hysteresis: ratio must lie in \[0, 1\]",
    ),
    "no large tokens": ({"policies": ["entropy:large_tokens=0"]}, "large_tokens must lie in"),
    "half a token": ({"policies": ["entropy:large_tokens=0.5"]}, "must be a whole number, got 0.5"),
    "many drafts": ({"policies": ["entropy:drafts=17"]}, r"drafts must lie in \[0, 16\], got 17"),
    "no top": ({"policies": ["entropy:entropy_top_k=0"]}, "entropy_top_k must lie in"),
    "small with drafts": (
        {"policies": ["small-alone:drafts=2"]},
        "small-alone takes no parameters",
    ),
    "large with glimpse": (
        {"policies": ["large-alone:entropy_top_k=2"]},
        "large-alone takes no parameter but drafts",
    ),
    "share of a policy": ({"policies": ["random:share=1.5"]}, "policy random: share must lie in"),
    "share above": ({"shares": [1.5]}, r"a wanted share must lie in \(0, 1\), got 1\.5"),
    "share below": ({"shares": [-0.1]}, r"must lie in \(0, 1\), got -0\.1; the models alone"),
    "share of all": ({"shares": [1.0]}, "the models alone, which are 0 and 1, are always run"),
    "share as text": ({"shares": ["0.5"]}, "a share must be a number"),
    "no shares": ({"shares": []}, "these policies need wanted shares"),
    "no problems": ({"problems": 0}, r"problems must lie in \[2"),
    "one development problem": ({"development_problems": 1}, r"development_problems must lie in"),
    "no batch": ({"batch": 0}, r"batch must lie in \[1"),
    "no timing batch": ({"timing_batches": [0]}, r"a timing batch must lie in \[1"),
    "seeds": ({"seeds": 2.5}, "seeds must be an integer"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_run_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Plan(**values)


def test_policies_with_a_threshold_of_their_own_need_no_share() -> None:
    plan = Plan(policies=["entropy:threshold=1", "hysteresis:threshold=0.4,ratio=0.2"], shares=[])
    assert [spec.takes_share for spec in plan.specs] == [False, False]
    assert [dict(spec.parameters) for spec in plan.specs] == [
        {"threshold": 1.0},
        {"threshold": 0.4, "ratio": 0.2},
    ]


def test_a_rule_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="policy entropy needs the parameter 'threshold'"):
        RULES["entropy"].build({})


def test_a_policy_that_is_named_twice_runs_once() -> None:
    assert len(Plan(policies=["entropy", "entropy", "small-alone"]).specs) == 1


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.set_by])
def test_every_rule_is_built_from_a_share_or_threshold(name: str) -> None:
    spec = PolicySpec.parse(name)
    value = RULES[name].least + 0.25
    policy = RULES[name].build(spec.parameters_at(value))
    set_by = "high" if name == "hysteresis" else str(RULES[name].set_by)
    assert getattr(policy, set_by) == value


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.signal])
def test_scores_and_thresholds_are_each_others_inverse(name: str) -> None:
    rule = RULES[name]
    assert rule.threshold(rule.score(rule.least + 0.25)) == rule.least + 0.25
    assert rule.threshold(0.0) >= rule.least
    low, high = sorted([rule.score(0.2), rule.score(0.7)])
    assert (low, high) == ((rule.score(0.7), rule.score(0.2)) if rule.falling else (0.2, 0.7))


def test_labels_tell_parameters_apart() -> None:
    assert Arm("entropy", {"threshold": 0.1 + 0.2}).label == "entropy threshold=0.30000000000000004"
    assert Arm("small-alone").label == "small-alone"


PRICES: dict[str, tuple[tuple[Any, ...], str]] = {
    "negative": ((-1, 2), "price of the small model must be >= 0"),
    "nan": ((1, float("nan")), "price of the large model must be >= 0"),
    "nothing": ((0, 0), "one of the two prices must be above 0"),
    "other count": ((1, 2, "word"), "prices are per pass or per token, got 'word'"),
}


@pytest.mark.parametrize(("values", "message"), PRICES.values(), ids=PRICES)
def test_bad_prices(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prices(*values)


def test_prices_of_weights() -> None:
    prices = prices_of_weights({"small": 4_000_000_000, "large": 32_000_000_000})
    assert (prices.small, prices.large, prices.per) == (4000.0, 32000.0, "pass")
