"""Values read from JSON files: parsed, and checked against what the file's format says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "COUNT",
    "COUNTS",
    "FINITE_OR_NULL",
    "SECONDS",
    "TEXT",
    "TEXTS",
    "TEXT_OR_NULL",
    "THRESHOLD",
    "WRITER",
    "Kind",
    "check",
    "is_number",
    "is_whole",
    "parse",
    "read_text",
    "shown",
]

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value may be.

    Attributes:
        description: For messages, as in "must be ...".
        accepts: Whether a value is of the kind.
    """

    description: str
    accepts: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """An integer from 0; JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """A number that a float holds; JSON's true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        float(value)
    except OverflowError:  # an integer with hundreds of digits
        return False
    return True


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


COUNT = Kind("a whole number >= 0", is_whole)
SECONDS = Kind("a finite number >= 0", lambda value: _is_finite(value) and value >= 0)
FINITE_OR_NULL = Kind("a finite number or null", lambda value: value is None or _is_finite(value))
# NaN: not recorded, as in the files of the published client.
THRESHOLD = Kind("a number >= 0", lambda value: is_number(value) and not value < 0)
TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
)
COUNTS = Kind(
    "a list of whole numbers >= 0",
    lambda value: isinstance(value, list) and all(map(is_whole, value)),
)
TEXT_OR_NULL = Kind("text or null", lambda value: value is None or isinstance(value, str))
WRITER = Kind('"small" or "large"', lambda value: value in ("small", "large"))


def shown(value: Any) -> str:
    """A value for a message: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def check(value: Any, kind: Kind, where: str) -> None:
    """Checks one value.

    Args:
        value: From a file.
        kind: What it may be.
        where: File, record and field, for the message.

    Raises:
        ValueError: It is of another kind.
    """
    if not kind.accepts(value):
        raise ValueError(f"{where} must be {kind.description}, got {shown(value)}")


def parse(text: str) -> Any:
    """JSON to Python.

    Raises:
        ValueError: It is no JSON, nested too deeply, or holds an endless number.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_text(path: Path) -> str:
    """The whole file; a byte order mark in front is dropped.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a glimprouter trace (not UTF-8 text)") from error
