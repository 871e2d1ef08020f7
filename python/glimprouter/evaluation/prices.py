"""What a run would cost: counted passes or tokens, at prices that somebody names."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glimprouter.evaluation.records import ProblemRecord

__all__ = ["Prices", "prices_from_gpu_figures", "prices_of_weights"]

MEASURED = ("graphs_ms", "paged_ms")  # of a decoding pass of one token, the first that is there


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of both models.

    Attributes:
        small: Of one pass, or token, of the small model, finite and >= 0.
        large: Of the large model's.
        per: What is counted: forward passes, or tokens, written or computed in vain.
        unit: Of the prices.
        source: Where they come from, for the report.

    Raises:
        ValueError: A price out of range, both 0, or another count.
    """

    small: float
    large: float
    per: Literal["pass", "token"] = "pass"
    unit: str = "units"
    source: str = "given"

    def __post_init__(self) -> None:
        """Validates the prices."""
        for name in ("small", "large"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ValueError(f"the price of the {name} model must be >= 0, got {value!r}")
        if self.small == self.large == 0:
            raise ValueError("one of the two prices must be above 0")
        if self.per not in ("pass", "token"):
            raise ValueError(f"prices are per pass or per token, got {self.per!r}")

    def of(self, record: ProblemRecord) -> float:
        """The price of one problem."""
        if self.per == "token":
            small = record.small_tokens + record.rewritten_tokens + record.small_unused
            return self.small * small + self.large * (record.large_tokens + record.large_unused)
        return self.small * record.small_passes + self.large * record.large_passes


def prices_of_weights(weights: dict[str, Any] | None) -> Prices:
    """Prices where nobody gave any: a pass costs as many weights as it reads.

    Of engines, which do not show their weights, the large model's passes are counted.
    """
    if weights is None:
        return Prices(
            0.0,
            1.0,
            "pass",
            "passes of the large model",
            "assumed, since no prices were given, and engines do not show their weights: the small"
            " model's passes cost nothing",
        )
    small, large = (float(weights[name]) / 1e6 for name in ("small", "large"))
    return Prices(
        small,
        large,
        "pass",
        "million weights read",
        "assumed, since no prices were given: a pass costs what it reads of the weights, as it does"
        " where memory bandwidth is the bound and one sequence runs alone",
    )


def prices_from_gpu_figures(path: Path) -> Prices:
    """Milliseconds of decoding passes from a file of ``benchmarks/results``.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no measured passes of two models.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in figures["decode"]["rows"] if any(key in row for key in MEASURED)]
        found = [(str(row["model"]), *_measured(row)) for row in (rows[0], rows[-1])]
        gpu = figures["machine"].get("gpu", figures["machine"]["processor"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no decoding passes of a small and a large model; give a file of"
            " benchmarks/results that has them (gpu-*.json with a section 'decode')"
        ) from error
    (small, small_ms, how), (large, large_ms, _) = found
    return Prices(
        small_ms,
        large_ms,
        "pass",
        "ms",
        f"measured on {gpu} ({path.name}, {how}): a token of one sequence by a {small} and a"
        f" {large} model, which are not the models evaluated here",
    )


def _measured(row: dict[str, Any]) -> tuple[float, str]:
    key = next(key for key in MEASURED if key in row)
    return float(row[key]), key
