"""The embedded pair: a small and a large model trained from nothing on a task of list reduction.

What they are and how they were trained is in ``MODEL_CARD.md`` beside this file; the scripts are in
``benchmarks/pairs`` of the repository.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["RECOMMENDED_THRESHOLD", "large_path", "small_path"]

RECOMMENDED_THRESHOLD = 0.5
"""tau in nats for this pair, chosen on development problems (see the model card)."""


def small_path() -> Path:
    """Directory of the small model, as ``from_pretrained`` takes it."""
    return Path(__file__).parent / "small"


def large_path() -> Path:
    """Directory of the large model."""
    return Path(__file__).parent / "large"
