"""Rows of logits that the tests share: ordinary ones and hostile ones, all seeded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


def normal_rows(count: int, vocabulary: int, seed: int = 0, scale: float = 2.5) -> Float32Array:
    """Returns logits [count, vocabulary] ~ N(0, scale)."""
    generator = np.random.default_rng(seed)
    return (scale * generator.standard_normal((count, vocabulary))).astype(np.float32)


def peaked_rows(count: int, vocabulary: int, seed: int = 0, peak: float = 22.0) -> Float32Array:
    """Returns N(0, 2.5) rows [count, vocabulary] with one element, at a random place, of `peak`."""
    rows = normal_rows(count, vocabulary, seed)
    places = np.random.default_rng(seed + 1).integers(0, vocabulary, count)
    rows[np.arange(count), places] = peak
    return rows


def hostile_rows(vocabulary: int, seed: int = 0) -> dict[str, Float32Array]:
    """Returns rows [vocabulary] on which a careless reduction loses digits or sense, by name."""
    generator = np.random.default_rng(seed)
    normal = normal_rows(1, vocabulary, seed)[0]
    masked = normal.copy()
    masked[generator.random(vocabulary) < 0.7] = -np.inf
    masked[vocabulary // 2] = 0.25
    one_hot = np.full(vocabulary, -np.inf, dtype=np.float32)
    one_hot[vocabulary - 1] = 3.0
    nearly_one_hot = np.zeros(vocabulary, dtype=np.float32)
    nearly_one_hot[vocabulary // 3] = 60.0
    two_valued = np.where(generator.random(vocabulary) < 0.5, 1.5, -1.5).astype(np.float32)
    late_maximum = np.linspace(-30.0, 10.0, vocabulary, dtype=np.float32)
    overflow = np.where(generator.random(vocabulary) < 0.5, 3.0e38, -3.0e38).astype(np.float32)
    denormal = generator.integers(0, 1 << 23, vocabulary).astype(np.uint32).view(np.float32)
    return {
        "normal": normal,
        "one_hot": one_hot,
        "nearly_one_hot": nearly_one_hot,
        "uniform": np.full(vocabulary, -7.25, dtype=np.float32),
        "zero": np.zeros(vocabulary, dtype=np.float32),
        "signed_zeros": np.where(generator.random(vocabulary) < 0.5, 0.0, -0.0).astype(np.float32),
        "two_valued": two_valued,
        "masked": masked,
        "offset_up": (normal + np.float32(1e4)).astype(np.float32),
        "offset_down": (normal - np.float32(1e4)).astype(np.float32),
        "ties": np.round(normal).astype(np.float32),
        "denormal": denormal,
        "wide": (30.0 * normal).astype(np.float32),
        "overflowing_difference": overflow,
        "rising": late_maximum,
        "falling": late_maximum[::-1].copy(),
    }
