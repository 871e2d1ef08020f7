"""Calibration: the threshold that sends a wanted share of steps to the large model."""

from glimprouter.calibration.record import SCHEMA_VERSION, Calibration, check_large_share
from glimprouter.calibration.threshold import (
    MIN_PROMPTS,
    Progress,
    calibrate,
    distinct_prompts,
)

__all__ = [
    "MIN_PROMPTS",
    "SCHEMA_VERSION",
    "Calibration",
    "Progress",
    "calibrate",
    "check_large_share",
    "distinct_prompts",
]
