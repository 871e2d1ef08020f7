"""Checks that several policies share."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_probability(name: str, value: Any) -> None:
    """Checks a probability, or a share.

    Raises:
        TypeError: No number.
        ValueError: Outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
