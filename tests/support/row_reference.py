"""Statistics of a row of logits in float64, by their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def entropies(row: NDArray[Any]) -> NDArray[np.float64]:
    """Entropy in nats of the k most probable tokens, renormalised, for k = 1 .. V."""
    descending = np.sort(row.astype(np.float64))[::-1]
    weights = np.exp(descending - descending[0])
    sums = np.cumsum(weights)
    weighted = np.cumsum(weights * (descending - descending[0]))
    return np.log(sums) - weighted / sums


def log_probability(row: NDArray[Any], token: int) -> float:
    """ln p of a token over the whole row, in float64."""
    values = row.astype(np.float64)
    return float(values[token] - values.max() - np.log(np.exp(values - values.max()).sum()))
