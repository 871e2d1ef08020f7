"""Numbers for tables."""

from __future__ import annotations

import math
from collections.abc import Callable

from glimprouter.evaluation.statistics import Interval

__all__ = [
    "interval",
    "number",
    "number_interval",
    "p_value",
    "percent",
    "percent_interval",
    "points_interval",
]

NONE = "-"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, or a dash."""
    return NONE if math.isnan(value) else f"{value:.{digits}g}"


def number_interval(found: Interval) -> str:
    """Estimate and interval with three significant digits."""
    return _with_ends(found, number)


def percent(share: float) -> str:
    """One decimal, without the sign."""
    return NONE if math.isnan(share) else f"{100 * share:.1f}"


def interval(found: Interval, digits: int = 3) -> str:
    """Estimate and interval as decimals."""
    return _with_ends(found, lambda value: f"{value:.{digits}f}")


def percent_interval(found: Interval) -> str:
    """Estimate and interval in per cent."""
    return _with_ends(found, lambda value: f"{100 * value:.1f}")


def points_interval(found: Interval) -> str:
    """A difference in percentage points, with its sign."""
    return _with_ends(found, lambda value: f"{100 * value:+.1f}")


def p_value(value: float) -> str:
    """Three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _with_ends(found: Interval, shown: Callable[[float], str]) -> str:
    if math.isnan(found.estimate):
        return NONE
    if math.isnan(found.low):
        return f"{shown(found.estimate)} (no interval)"
    return f"{shown(found.estimate)} ({shown(found.low)} .. {shown(found.high)})"
