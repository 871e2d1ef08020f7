"""Modules of the benchmarks, which find each other as scripts do: by their own folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(folder: str, name: str) -> ModuleType:
    """One of them."""
    sys.path.insert(0, str(BENCHMARKS / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS / folder))
