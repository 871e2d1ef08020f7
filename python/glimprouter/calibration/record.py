"""A calibrated threshold, what it was measured to do, and its file."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from glimprouter.calibration.fingerprint import ENGINES, pair_fingerprint
from glimprouter.calibration.pairs import AnyPair
from glimprouter.config import check_integer
from glimprouter.files import write_atomically

__all__ = ["SCHEMA_VERSION", "Calibration", "check_large_share"]

SCHEMA_VERSION = 1

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_KIND = "glimprouter.calibration"
_PAIR = re.compile(rf"[0-9a-f]{{64}}:[0-9a-f]{{64}}({ENGINES})?")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and what it was measured to do.

    Attributes:
        threshold: tau in nats, finite, >= 0.
        large_share: The wanted share of glimpsed steps that go to the large model, in (0, 1).
        measured_share: The share in the verification run, in [0, 1].
        low: Lower end of its 95 % interval, in [0, measured_share].
        high: Upper end, in [measured_share, 1].
        calibration_prompts: Prompts that the threshold was chosen on, >= 2.
        verification_prompts: Other prompts that it was verified on, >= 2.
        calibration_steps: Glimpsed steps of the calibration run at this threshold, >= 1.
        verification_steps: Glimpsed steps of the verification run, >= 1.
        rounds: Routed calibration runs, >= 1.
        comparison: ``">"`` or ``">="``, which belongs to the threshold.
        entropy_top_k: None or >= 1, as in :class:`RouterConfig`; belongs to the threshold too.
        pair: Fingerprint of both models (:func:`.pair_fingerprint`).

    Raises:
        ValueError: A value of the wrong type or outside its range.
    """

    threshold: float
    large_share: float
    measured_share: float
    low: float
    high: float
    calibration_prompts: int
    verification_prompts: int
    calibration_steps: int
    verification_steps: int
    rounds: int
    comparison: Literal[">", ">="]
    entropy_top_k: int | None
    pair: str

    def __post_init__(self) -> None:
        """Validates every field."""
        for name in ("threshold", "large_share", "measured_share", "low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 <= self.threshold <= _LARGEST_FLOAT32:
            raise ValueError(f"threshold must be a finite float32 >= 0, got {self.threshold!r}")
        check_large_share(self.large_share)
        if not 0 <= self.low <= self.measured_share <= self.high <= 1:
            raise ValueError(
                "low, measured_share and high must ascend in [0, 1], got"
                f" {self.low!r}, {self.measured_share!r}, {self.high!r}"
            )
        for name, least in (
            ("calibration_prompts", 2),
            ("verification_prompts", 2),
            ("calibration_steps", 1),
            ("verification_steps", 1),
            ("rounds", 1),
        ):
            _check_count(name, getattr(self, name), least)
        if self.comparison not in (">", ">="):
            raise ValueError(f"comparison must be '>' or '>=', got {self.comparison!r}")
        if self.entropy_top_k is not None:
            _check_count("entropy_top_k", self.entropy_top_k, 1)
        if not isinstance(self.pair, str) or not _PAIR.fullmatch(self.pair):
            raise ValueError(f"pair must be a fingerprint (two SHA-256), got {self.pair!r}")

    def router_options(self) -> dict[str, Any]:
        """The fields of :class:`RouterConfig` that it settles, for ``RouterConfig.replace``."""
        return {
            "threshold": float(self.threshold),
            "comparison": self.comparison,
            "entropy_top_k": self.entropy_top_k,
        }

    @property
    def on_engines(self) -> bool:
        """Whether it was made on engines, which are known by names and vocabularies."""
        return self.pair.endswith(ENGINES)

    def check_pair(self, model: AnyPair) -> None:
        """Checks that it was made with this pair of models, in any dtype and from any path.

        Of engines, what they serve their models as is compared.

        Raises:
            ValueError: With another pair; says which of the models differs. Or one of them is on
                engines and the other is not: nobody can tell then.
        """
        fingerprint = pair_fingerprint(model)
        if self.on_engines != fingerprint.endswith(ENGINES):
            made = "on engines, and this pair is not"
            if not self.on_engines:
                made = "with a pair in one process, and this one is on engines"
            raise ValueError(
                f"the calibration was made {made}: engines do not show their weights, so nobody can"
                " tell whether the models are the same; calibrate this pair"
            )
        ours, theirs = self.pair.split(":")[:2], fingerprint.split(":")[:2]
        names = ("small", "large")
        differing = [n for n, a, b in zip(names, ours, theirs, strict=True) if a != b]
        if differing:
            what = " and the ".join(differing)
            verb = "models differ" if len(differing) == 2 else "model differs"
            raise ValueError(
                f"the calibration belongs to another pair: the {what} {verb}. A threshold does not"
                " carry over; calibrate this pair"
            )

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON object; the file appears whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        header = {"kind": _KIND, "schema_version": SCHEMA_VERSION}
        record = {**header, **dataclasses.asdict(self)}
        write_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads one back.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no calibration, of another schema version, cut short, or has a field
                that is missing, unknown or out of range.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a glimprouter calibration, or is cut short: it is not JSON"
            ) from error
        if not isinstance(record, dict) or record.pop("kind", None) != _KIND:
            raise ValueError(f"{path} is not a glimprouter calibration (no kind {_KIND!r})")
        version = record.pop("schema_version", None)
        if version != SCHEMA_VERSION or isinstance(version, bool | float):
            raise ValueError(
                f"{path} has schema version {version!r}; this glimprouter reads {SCHEMA_VERSION}"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        if missing := sorted(names - set(record)):
            raise ValueError(f"{path} is not a valid calibration: it lacks {missing[0]!r}")
        if unknown := sorted(set(record) - names):
            raise ValueError(f"{path} is not a valid calibration: unknown field {unknown[0]!r}")
        try:
            return cls(**record)
        except ValueError as error:
            raise ValueError(f"{path} is not a valid calibration: {error}") from error


def check_large_share(value: Any) -> None:
    """Checks a wanted share.

    Raises:
        TypeError: No number.
        ValueError: Outside (0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"large_share must be a number, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(
            f"large_share must lie in (0, 1), got {value!r}; for all or none of the steps there is"
            ' route="large" or "small"'
        )


def _check_count(name: str, value: Any, least: int) -> None:
    try:
        check_integer(name, value, least)
    except TypeError as error:
        raise ValueError(str(error)) from error
