"""glimprouter: step-wise collaborative inference (GlimpRouter, arXiv 2601.05110), native.

A small model writes the easy steps of a chain of thought, a large one the hard ones; the entropy of
the small model's first-token distribution decides. ``import glimprouter`` needs NumPy only; the
Hugging Face engine is in :mod:`glimprouter.hf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimprouter import _C
from glimprouter._C import DeviceLost
from glimprouter.boundary import SequenceStart, StepBoundary
from glimprouter.config import RouterConfig
from glimprouter.glimpse import (
    Glimpse,
    Status,
    get_num_threads,
    glimpse,
    nucleus,
    sample,
    set_num_threads,
)
from glimprouter.kv import (
    KvCache,
    KvLayout,
    LayerLayout,
    LayerShape,
    OutOfPages,
    PagePool,
    RaggedBatch,
    TokenLedger,
    VocabularyMap,
    append_kv,
    gather_kv,
    paged_attention,
)
from glimprouter.router import EndReason, OutputField, Phase, Route, StepOutputs, StepRouter
from glimprouter.trace import Trace, TraceStep

if TYPE_CHECKING:
    from glimprouter.calibration import Calibration, calibrate

__all__ = [
    "Calibration",
    "DeviceLost",
    "EndReason",
    "Glimpse",
    "KvCache",
    "KvLayout",
    "LayerLayout",
    "LayerShape",
    "OutOfPages",
    "OutputField",
    "PagePool",
    "Phase",
    "RaggedBatch",
    "Route",
    "RouterConfig",
    "SequenceStart",
    "Status",
    "StepBoundary",
    "StepOutputs",
    "StepRouter",
    "TokenLedger",
    "Trace",
    "TraceStep",
    "VocabularyMap",
    "__version__",
    "append_kv",
    "build_info",
    "calibrate",
    "gather_kv",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "glimpse",
    "nucleus",
    "paged_attention",
    "sample",
    "set_num_threads",
]

__version__: str = _C.build_info()["version"]


def __getattr__(name: str) -> Any:
    """Imports what most programs never use when it is asked for."""
    if name in ("Calibration", "calibrate"):
        from glimprouter import calibration

        return getattr(calibration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_info() -> dict[str, Any]:
    """Version, compiler, and the instruction set in use (GLIMPROUTER_ISA forces one)."""
    return _C.build_info()


def get_include() -> str:
    """Directory of the C++ headers, for extensions that call the core directly.

    Raises:
        FileNotFoundError: The package was installed without its headers.
    """
    source_tree = Path(__file__).parents[2] / "csrc" / "include"  # of an editable installation
    if (source_tree / "glimprouter").is_dir():
        return str(source_tree)
    return _installed("include", "glimprouter.hpp")


def get_cmake_dir() -> str:
    """Directory of the CMake package: ``-Dglimprouter_DIR=...`` of ``find_package(glimprouter)``.

    Raises:
        FileNotFoundError: The package was installed without its library.
    """
    return _installed("lib/cmake/glimprouter", "glimprouterConfig.cmake")


def _installed(folder: str, name: str) -> str:
    """A folder of the installed package that holds a file, or holds it in ``glimprouter/``."""
    path = Path(__file__).parent / folder
    if not (path / name).is_file() and not (path / "glimprouter" / name).is_file():
        raise FileNotFoundError(
            f"{path} has no {name}: it comes with an installed wheel, not with a source tree; run"
            " pip install ."
        )
    return str(path)
