"""Statistics on planted data, against other computations of the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from glimprouter.evaluation.statistics import (
    LEAST_PROBLEMS,
    Interval,
    aurocs,
    mean_interval,
    paired_test,
    peaks_of,
    share_difference,
)

PROBLEMS, EACH = 60, 12


def planted(seed: int, distance: float) -> tuple[list[float], list[float], list[bool], list[str]]:
    """A signal whose positives lie so far above, one that knows nothing, labels and problems."""
    draw = np.random.default_rng(seed)
    labels = draw.random(PROBLEMS * EACH) < 0.25
    good = draw.normal(size=len(labels)) + distance * labels
    useless = draw.normal(size=len(labels))
    problems = np.repeat(np.arange(PROBLEMS), EACH).astype(str)
    return good.tolist(), useless.tolist(), labels.tolist(), problems.tolist()


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0])
def test_a_planted_signal_has_its_area(distance: float) -> None:
    """Two normal distributions at a distance d have the area Phi(d / sqrt(2))."""
    good, useless, labels, problems = planted(1, distance)
    found = aurocs({"good": good, "useless": useless}, labels, problems)
    want = stats.norm.cdf(distance / math.sqrt(2))
    low, high = found.aurocs["good"][1:]
    assert low < want < high
    assert found.aurocs["good"].estimate == pytest.approx(want, abs=0.05)
    assert found.aurocs["useless"].low < 0.5 < found.aurocs["useless"].high
    assert found.beyond["useless"].low > 0
    assert found.beyond["good"] == Interval(0.0, 0.0, 0.0)
    assert (found.observations, found.positives) == (PROBLEMS * EACH, sum(labels))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 100 intervals for a useless signal some 95 hold 0.5."""
    held = 0
    for seed in range(100):
        _, useless, labels, problems = planted(seed, 1.0)
        interval = aurocs({"useless": useless}, labels, problems).aurocs["useless"]
        held += interval.low <= 0.5 <= interval.high
    assert 88 <= held <= 100


def test_resampled_areas_are_those_of_scikit_learn() -> None:
    """With drawn problems as weights; ties count half."""
    from glimprouter.evaluation.statistics import _resampled_aurocs

    good, _, labels, problems = planted(3, 1.0)
    values, truth = np.round(np.array([good]), 1), np.array(labels)
    cluster = np.unique(problems, return_inverse=True)[1]
    draws = np.random.default_rng(0).integers(0, PROBLEMS, (5, PROBLEMS))
    found = _resampled_aurocs(values, truth, cluster)(draws)
    for place, drawn in enumerate(draws):
        weights = np.bincount(drawn, minlength=PROBLEMS)[cluster]
        want = roc_auc_score(truth, values[0], sample_weight=weights)
        assert found[0, place] == pytest.approx(want, abs=1e-12)


def test_steps_of_one_problem_are_not_independent() -> None:
    """Twelve copies of an observation say what one says: the interval does not shrink."""
    draw = np.random.default_rng(0)
    labels = draw.random(PROBLEMS) < 0.4
    signal = draw.normal(size=PROBLEMS) + labels
    keys = [str(k) for k in range(PROBLEMS)]
    once = aurocs({"s": signal.tolist()}, labels.tolist(), keys)
    copied = aurocs(
        {"s": np.repeat(signal, 12).tolist()}, np.repeat(labels, 12).tolist(), np.repeat(keys, 12)
    )
    assert copied.aurocs["s"] == pytest.approx(once.aurocs["s"])


def test_without_both_labels_there_is_no_area() -> None:
    found = aurocs({"s": [0.1, 0.2]}, [True, True], ["a", "b"])
    assert math.isnan(found.aurocs["s"].estimate)
    assert found.remark == "all observations have the same label"
    assert aurocs({"s": []}, [], []).remark == "no observations"


def test_with_few_problems_there_is_no_interval() -> None:
    count = LEAST_PROBLEMS - 1
    labels = [True] * count + [False] * 20
    keys = [str(k) for k in range(count + 20)]
    signal = np.random.default_rng(0).normal(size=len(labels)).tolist()
    found = aurocs({"s": signal}, labels, keys)
    assert not math.isnan(found.aurocs["s"].estimate)
    assert math.isnan(found.aurocs["s"].low)
    assert found.remark is not None
    assert f"in {count} problems only" in found.remark


def test_mcnemar() -> None:
    """15 gained, 5 lost: the binomial test of 15 in 20."""
    first = [[True]] * 15 + [[False]] * 5 + [[True]] * 20
    second = [[False]] * 15 + [[True]] * 5 + [[True]] * 20
    found = paired_test(first, second)
    assert found.test == "McNemar, exact"
    assert found.p_value == pytest.approx(stats.binomtest(15, 20).pvalue)
    assert found.difference.estimate == pytest.approx(10 / 40)
    assert found.difference.low < 0.25 < found.difference.high
    same = paired_test(first, first)
    bound = stats.binomtest(0, 40).proportion_ci(method="exact").high
    assert (same.p_value, same.difference) == (1.0, pytest.approx((0.0, -bound, bound)))


def test_several_seeds_of_a_problem_are_one_observation() -> None:
    """The same runs five times are no more evidence than once, but for other random flips."""
    draw = np.random.default_rng(2)
    first = [[bool(b)] for b in draw.random(60) < 0.7]
    second = [[bool(b)] for b in draw.random(60) < 0.5]
    once = paired_test(first, second)
    often = paired_test([run * 5 for run in first], [run * 5 for run in second])
    assert often.test == "sign flips"
    assert often.difference == pytest.approx(once.difference)
    assert often.p_value == pytest.approx(once.p_value, abs=0.02)


def test_unequal_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="the same problems and seeds twice"):
        paired_test([[True]], [[True], [False]])
    with pytest.raises(ValueError, match="the same problems"):
        paired_test([], [])


def test_means() -> None:
    values = np.random.default_rng(1).random(200)
    found = mean_interval(values.tolist())
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    exact = stats.binomtest(30, 30).proportion_ci(method="exact")
    assert mean_interval([1.0] * 30, shares=True) == pytest.approx((1.0, exact.low, 1.0))
    assert math.isnan(mean_interval([0.5]).low)
    assert math.isnan(mean_interval([]).estimate)


def test_two_peaks_and_one() -> None:
    draw = np.random.default_rng(0)
    two = peaks_of([*draw.normal(0, 0.1, 300), *draw.normal(1, 0.1, 100)])
    assert two is not None
    assert two.separation > 8
    assert two.means == pytest.approx((0, 1), abs=0.03)
    assert two.weights == pytest.approx((0.75, 0.25), abs=0.02)
    one = peaks_of(draw.normal(size=400).tolist())
    assert one is not None
    assert one.separation < 2
    assert peaks_of([0.5] * 50) is None
    assert peaks_of([0.1, 0.2]) is None


def test_a_difference_of_shares_is_over_problems() -> None:
    """2 of 4 and 1 of 4 in each problem: no doubt. Where problems differ, the less the more."""
    alike = share_difference(([2] * 20, [4] * 20), ([1] * 20, [4] * 20))
    assert alike == (0.25, 0.25, 0.25)
    ends = []
    for count in (20, 80):
        sent = [n % 2 * 4 for n in range(count)]
        found = share_difference((sent, [4] * count), ([1] * count, [4] * count))
        assert found.estimate == 0.25
        assert found.low < 0.25 < found.high
        ends.append(found.high - found.low)
    # The standard error of a mean of 0 and 1 in equal parts is 1 / (2 sqrt n).
    assert ends == pytest.approx([2 * 1.96 * 0.5 / math.sqrt(n) for n in (20, 80)], rel=0.15)
    few = share_difference(([1] * 7 + [0] * 9, [4] * 7 + [0] * 9), ([1] * 16, [4] * 16))
    assert few.estimate == 0.0
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    assert math.isnan(share_difference(([0], [0]), ([1], [2])).estimate)
