"""Statistics of an evaluation: problems, not steps or runs, are what is independent.

Needs scipy and scikit-learn. Intervals are percentile bootstrap intervals over problems: all steps
and all seeds of a resampled problem go with it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from glimprouter.calibration.shares import ShareInterval, clustered_share

__all__ = [
    "Interval",
    "PairedTest",
    "Peaks",
    "SignalScores",
    "aurocs",
    "mean_interval",
    "paired_test",
    "peaks_of",
    "share_difference",
    "share_interval",
]

RESAMPLES = 999
PERMUTATIONS = 9999
LEAST_PROBLEMS = 8
"""With fewer problems of a class no interval is given: resampling would feign certainty."""

Array = np.ndarray[Any, np.dtype[Any]]


class Interval(NamedTuple):
    """An estimate with its 95 % interval; NaN ends where there is none."""

    estimate: float
    low: float
    high: float


def mean_interval(values: Sequence[float], *, shares: bool = False) -> Interval:
    """The mean over problems.

    Args:
        values: One a problem, such as its share of right answers over the seeds.
        shares: Whether they lie in [0, 1]: where all are 0, or all 1, resampling shows no spread,
            and the far end is that of as many single trials (Clopper and Pearson).
    """
    data = np.asarray(values, float)
    if len(data) == 0:
        return Interval(math.nan, math.nan, math.nan)
    if len(data) < 2:
        return Interval(float(data.mean()), math.nan, math.nan)
    if shares and np.ptp(data) == 0 and data[0] in (0.0, 1.0):
        exact = stats.binomtest(int(data.sum()), len(data)).proportion_ci(method="exact")
        return Interval(float(data[0]), float(exact.low), float(exact.high))
    found = _bootstrap(data, lambda drawn: drawn.mean(axis=-1))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high))


def share_interval(large: Sequence[int], steps: Sequence[int]) -> ShareInterval | None:
    """The share of all steps that went large; None for fewer than two problems with steps."""
    if sum(count > 0 for count in steps) < 2:
        return None
    return clustered_share(large, steps, 0)


def share_difference(
    first: tuple[Sequence[int], Sequence[int]], second: tuple[Sequence[int], Sequence[int]]
) -> Interval:
    """How much larger one share is than another, each over all problems together.

    Args:
        first: For each problem, how many and of how many.
        second: The same of the other share, for the same problems.

    Returns:
        NaN ends where fewer than LEAST_PROBLEMS problems have anything that either is a share of.
    """
    counts = np.array([*first, *second], float)

    def difference(drawn: Array) -> Any:
        with np.errstate(invalid="ignore"):  # a share of nothing tells nothing
            one, of_one, other, of_other = counts[:, drawn].sum(axis=-1)
            return one / of_one - other / of_other

    places = np.arange(counts.shape[1])
    estimate = float(difference(places))
    if min(np.count_nonzero(counts[1]), np.count_nonzero(counts[3])) < LEAST_PROBLEMS:
        return Interval(estimate, math.nan, math.nan)
    low, high = np.nanquantile(_bootstrap(places, difference), [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


class PairedTest(NamedTuple):
    """A difference over the same problems.

    Attributes:
        difference: Mean of first minus second, with its interval.
        p_value: Two-sided, of no difference.
        test: By which test.
        problems: That it is over.
    """

    difference: Interval
    p_value: float
    test: str
    problems: int


def paired_test(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> PairedTest:
    """Whether two arms that solved the same problems differ.

    With one seed this is McNemar's exact test; with several, whose runs of one problem are not
    independent, the differences of a problem's means change their signs at random.

    Args:
        first: For each problem, right or wrong for each seed.
        second: The same problems and seeds.

    Raises:
        ValueError: No problems, or unequal numbers.
    """
    if not first or list(map(len, first)) != list(map(len, second)):
        raise ValueError("a paired test needs the same problems and seeds twice")
    differences = np.array([np.mean(a) - np.mean(b) for a, b in zip(first, second, strict=True)])
    interval = mean_interval(differences.tolist())
    if not differences.any():  # resampling shows no spread: as for so many single trials
        bound = mean_interval([0.0] * len(first), shares=True).high
        interval = Interval(0.0, -bound, bound)
    if all(len(runs) == 1 for runs in first):
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        p_value = 1.0 if gained + lost == 0 else stats.binomtest(gained, gained + lost).pvalue
        return PairedTest(interval, float(p_value), "McNemar, exact", len(first))
    if not differences.any() or len(differences) < 2:
        return PairedTest(interval, 1.0, "sign flips", len(first))
    result = stats.permutation_test(
        (differences,),
        lambda drawn, axis: drawn.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return PairedTest(interval, float(result.pvalue), "sign flips", len(first))


@dataclass(frozen=True, slots=True)
class SignalScores:
    """How well signals tell the positives of a label.

    Attributes:
        aurocs: Of each signal, in the order given.
        beyond: Difference of the first signal and each, in the same resamples.
        observations: That have the label and all signals.
        positives: Among them.
        problems: That they come from.
        remark: Why there is no number, or no interval; None where nothing is missing.
    """

    aurocs: dict[str, Interval]
    beyond: dict[str, Interval]
    observations: int
    positives: int
    problems: int
    remark: str | None


def aurocs(
    signals: Mapping[str, Sequence[float]],
    labels: Sequence[bool],
    problems: Sequence[str],
    *,
    resamples: int = RESAMPLES,
) -> SignalScores:
    """Area under the ROC curve of each signal, with intervals over problems.

    Args:
        signals: Finite values that grow with the positive label, one an observation.
        labels: Whether the observation is positive.
        problems: Key of each observation's problem.
        resamples: Of the bootstrap.
    """
    truth = np.asarray(labels, bool)
    keys, cluster = np.unique(np.asarray(problems, str), return_inverse=True)
    positives = int(truth.sum())
    sizes = (len(truth), positives, len(keys))
    if positives in (0, len(truth)):
        none = {name: Interval(math.nan, math.nan, math.nan) for name in signals}
        why = "all observations have the same label" if len(truth) else "no observations"
        return SignalScores(none, dict(none), *sizes, why)
    values = np.array([np.asarray(each, float) for each in signals.values()])
    estimates = np.array([roc_auc_score(truth, row) for row in values])
    least = min(len(np.unique(cluster[truth])), len(np.unique(cluster[~truth])))
    remark: str | None = None
    if least < LEAST_PROBLEMS:
        remark = f"no interval: one of the two labels occurs in {least} problems only"
        drawn = np.full((len(values), 1), math.nan)
    else:
        drawn = _bootstrap(
            np.arange(len(keys)), _resampled_aurocs(values, truth, cluster), resamples
        )
    return SignalScores(
        _intervals(signals, estimates, drawn),
        _intervals(signals, estimates[0] - estimates, drawn[0] - drawn),
        *sizes,
        remark,
    )


def _resampled_aurocs(values: Array, truth: Array, cluster: Array) -> Any:
    """A statistic of drawn problems: a problem that is drawn twice weighs twice.

    The area is the share of pairs of a positive and a negative that a signal puts in order, so it
    follows from how many pairs each two problems have, and how many of these are in order.
    """
    count = int(cluster.max()) + 1
    pairs = [_ordered_pairs(row, truth, cluster, count) for row in values]
    positives = np.bincount(cluster[truth], minlength=count)
    negatives = np.bincount(cluster[~truth], minlength=count)

    def of_draws(draws: Array) -> Array:
        flat = draws.reshape(-1, draws.shape[-1])
        weights = np.array([np.bincount(drawn, minlength=count) for drawn in flat], float)
        ordered = np.array([((weights @ each) * weights).sum(axis=1) for each in pairs])
        with np.errstate(invalid="ignore"):  # a draw without one of the labels has no area
            areas = ordered / ((weights @ positives) * (weights @ negatives))
        return np.asarray(areas.reshape(len(values), *draws.shape[:-1]))

    return of_draws


def _ordered_pairs(signal: Array, truth: Array, cluster: Array, count: int) -> Array:
    """For the positives of each problem (row) and the negatives of each (column): pairs in order.

    Ties count half.
    """
    found = np.zeros((count, count))
    negatives, own = signal[~truth], cluster[~truth]
    for value, row in zip(signal[truth], cluster[truth], strict=True):
        order = (value > negatives) + 0.5 * (value == negatives)
        found[row] += np.bincount(own, weights=order, minlength=count)
    return found


def _intervals(names: Mapping[str, Any], estimates: Array, drawn: Array) -> dict[str, Interval]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: there is no interval
        low, high = np.nanquantile(drawn, [0.025, 0.975], axis=-1)
    columns = zip(names, estimates.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Interval(*ends) for name, *ends in columns}


def _bootstrap(data: Array, statistic: Any, resamples: int = RESAMPLES) -> Array:
    """What a statistic gives for resampled data, resamples last."""
    result = stats.bootstrap(
        (data,),
        lambda drawn, axis=-1: statistic(drawn),
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return np.asarray(result.bootstrap_distribution)


class Peaks(NamedTuple):
    """Whether values have one peak or two.

    Attributes:
        better_by: By how much the Bayesian information criterion of two Gaussians is below that of
            one; above 10 it clearly prefers two, which a skew alone brings about, too.
        separation: Ashman's D of the two, ``sqrt(2) |m1 - m2| / sqrt(s1^2 + s2^2)``: below 2 they
            make one peak.
        means: Of the two.
        weights: Of the two.
    """

    better_by: float
    separation: float
    means: tuple[float, float]
    weights: tuple[float, float]


def peaks_of(values: Sequence[float]) -> Peaks | None:
    """Fits one Gaussian and two; None for fewer than 20 values, or equal ones."""
    data = np.asarray(values, float)[:, None]
    if len(data) < 20 or np.ptp(data) == 0:
        return None
    one, two = (GaussianMixture(count, n_init=3, random_state=0).fit(data) for count in (1, 2))
    order = np.argsort(two.means_[:, 0])
    means, weights = two.means_[order, 0], two.weights_[order]
    spread = math.sqrt(float(two.covariances_.sum()))
    separation = math.sqrt(2) * float(means[1] - means[0]) / spread
    return Peaks(
        float(one.bic(data) - two.bic(data)),
        separation,
        (float(means[0]), float(means[1])),
        (float(weights[0]), float(weights[1])),
    )
