"""The arithmetic of shares: nearest thresholds and intervals over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from glimprouter.calibration import shares
from glimprouter.cli.intervals import proportion


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=30),
    st.floats(0.001, 0.999),
    st.sampled_from([">", ">="]),
)
def test_the_nearest_threshold(eighths: list[int], wanted: float, comparison: Any) -> None:
    """Against every threshold on a grid that separates all the values."""
    values = np.sort(np.array(eighths, dtype=np.float32) / 8)

    def share(tau: float) -> float:
        return float(np.mean(values > tau if comparison == ">" else values >= tau))

    found = shares.threshold_for_share(values, wanted, comparison)
    grid = np.arange(0, 2, 1 / 64)
    least = min(abs(share(tau) - wanted) for tau in grid)
    assert abs(share(found) - wanted) == pytest.approx(least, abs=1e-9)
    assert shares.share_above(values, found, comparison) == share(found)
    higher = [tau for tau in grid if tau > found and share(tau) < share(found)]
    assert all(abs(share(tau) - wanted) > least + 1e-9 for tau in higher)
    assert found == 0.0 or found > values[-1] or found not in values


def test_the_interval_covers_where_one_over_steps_does_not() -> None:
    """Prompts of very unlike shares, as chains of thought are."""
    generator = np.random.default_rng(11)
    truth, prompts, trials = 0.25, 12, 300
    covered = naive = 0
    for trial in range(trials):
        steps = generator.integers(5, 25, prompts)
        large = generator.binomial(steps, generator.beta(3 * truth, 3 * (1 - truth), prompts))
        interval = shares.clustered_share(large.tolist(), steps.tolist(), trial)
        assert interval.share == large.sum() / steps.sum()
        assert 0 <= interval.low <= interval.share <= interval.high <= 1
        covered += interval.low <= truth <= interval.high
        wilson = proportion(int(large.sum()), int(steps.sum()))
        naive += wilson.low <= truth <= wilson.high
    assert 0.9 <= covered / trials <= 0.98
    assert naive / trials < 0.75


def test_the_interval_without_spread() -> None:
    """No prompt of ten went large at all: up to 31 % of such prompts may (Clopper and Pearson)."""
    exact = stats.binomtest(0, 10).proportion_ci(0.95).high
    assert shares.clustered_share([0] * 10, [7] * 10, 0) == (0.0, 0.0, pytest.approx(exact))
    assert shares.clustered_share([7] * 10, [7] * 10, 0) == (1.0, pytest.approx(1 - exact), 1.0)
    with_empty = shares.clustered_share([0, 1, 2, 0], [0, 4, 4, 0], 0)
    assert with_empty == shares.clustered_share([1, 2], [4, 4], 0)
    assert shares.clustered_share([1, 2, 3], [4, 4, 4], 3) == shares.clustered_share(
        [1, 2, 3], [4, 4, 4], 3
    )
    with pytest.raises(ValueError, match="two prompts with glimpsed steps, got 1"):
        shares.clustered_share([1, 0], [2, 0], 0)


@pytest.mark.parametrize("freedom", [2, 3, 5, 11, 100])
def test_students_quantile(freedom: int) -> None:
    exact = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
    assert shares._student_over_normal(freedom) == pytest.approx(exact, rel=0.035)
