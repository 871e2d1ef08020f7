"""Statistics of a row of logits in float64, from their definitions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATUS_OK = 0
STATUS_NAN = 1
STATUS_POSITIVE_INFINITY = 2
STATUS_ALL_MASKED = 3

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RowStatistics:
    """What one row should give: nats, natural probabilities, ids."""

    status: int
    token: int
    entropy: float
    logsumexp: float
    max_prob: float
    margin: float
    varentropy: float


def row_status(row: NDArray[Any]) -> int:
    """Returns the status of a row; NaN wins over +inf, and +inf over a row of only -inf."""
    values = row.astype(np.float64)
    if np.isnan(values).any():
        return STATUS_NAN
    if np.isposinf(values).any():
        return STATUS_POSITIVE_INFINITY
    if np.isneginf(values).all():
        return STATUS_ALL_MASKED
    return STATUS_OK


def log_probabilities(row: NDArray[Any], temperature: float = 1.0) -> FloatArray:
    """Returns ln softmax(row / temperature) in float64; -inf stays -inf."""
    values = row.astype(np.float64)
    shifted = (values - values.max()) / temperature
    result: FloatArray = shifted - math.log(float(np.exp(shifted).sum()))
    return result


def entropy_of(log_probs: FloatArray) -> float:
    """Returns the Shannon entropy in nats of normalised log-probabilities."""
    finite = log_probs[np.isfinite(log_probs)]
    return float(-(np.exp(finite) * finite).sum())


def top_k_entropy(row: NDArray[Any], k: int) -> float:
    """Returns the entropy of the k largest probabilities, renormalised to sum to one."""
    values = np.sort(row.astype(np.float64))[::-1][:k]
    return entropy_of(log_probabilities(values))


def row_statistics(row: NDArray[Any]) -> RowStatistics:
    """Returns the statistics of one row [V] at temperature 1 over the whole vocabulary."""
    status = row_status(row)
    if status != STATUS_OK:
        nan = math.nan
        return RowStatistics(status, -1, nan, nan, nan, nan, nan)
    values = row.astype(np.float64)
    log_probs = log_probabilities(row)
    finite = log_probs[np.isfinite(log_probs)]
    probs = np.exp(finite)
    entropy = entropy_of(log_probs)
    two_best = np.sort(probs)[::-1][:2]
    second = float(two_best[1]) if two_best.size == 2 else 0.0
    return RowStatistics(
        status=status,
        token=int(np.argmax(values)),
        entropy=entropy,
        logsumexp=float(values.max() + math.log(np.exp(values - values.max()).sum())),
        max_prob=float(two_best[0]),
        margin=float(two_best[0]) - second,
        varentropy=float((probs * (finite + entropy) ** 2).sum()),
    )
