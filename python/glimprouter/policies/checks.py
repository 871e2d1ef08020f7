"""Checks that several policies share."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_number(name: str, value: Any) -> None:
    """Checks a number.

    Raises:
        TypeError: None.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_probability(name: str, value: Any) -> None:
    """Checks a probability, or a share.

    Raises:
        TypeError: No number.
        ValueError: Outside [0, 1].
    """
    check_number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")


def check_at_least(name: str, value: Any, low: float) -> None:
    """Checks a number that has a lower bound.

    Raises:
        TypeError: No number.
        ValueError: Below the bound, or not a number.
    """
    check_number(name, value)
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value!r}")


def check_function(name: str, function: Any) -> None:
    """Checks a function that scores steps.

    Raises:
        TypeError: It cannot be called.
    """
    if not callable(function):
        raise TypeError(
            f"{name} must be a function of (question, steps, step) that gives a number, got"
            f" {type(function).__name__}"
        )


def check_score(name: str, value: Any) -> None:
    """Checks what a function of the user's gave.

    Raises:
        TypeError: No number.
        ValueError: Not a number in the sense of floats, which no comparison tells.
    """
    check_number(name, value)
    if value != value:
        raise ValueError(f"{name} must be a number, got {value!r}")
