"""Which engine serves a pair, and which of its layers run in their fused form: found by trying."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.trial import why_not_paged

EngineName = Literal["paged", "gather"]


@dataclass(frozen=True)
class EngineChoice:
    """What the trials found.

    Attributes:
        name: Of the engine.
        fused: Layers that eager passes over pages compute in their fused form, by the name of the
            model. The gathering engine has none: it is the reference for the other one, and what
            both had would be tested by neither.
    """

    name: EngineName
    fused: Mapping[str, FusedLayers] = field(default_factory=dict)


def choose_engine(
    wanted: str, models: Mapping[str, Any], device: str, fuse: bool = True
) -> EngineChoice:
    """Tries the models on pages, with fused layers first.

    Args:
        wanted: ``"paged"``, ``"gather"`` or ``"auto"``.
        models: By name.
        device: Of the pages.
        fuse: Whether layers may run in their fused form; not in compiled graphs, where the compiler
            fuses.

    Raises:
        ValueError: ``"paged"`` is wanted and a model cannot be served by it.

    Warns:
        RuntimeWarning: ``"auto"`` falls back.
    """
    if wanted == "gather":
        return EngineChoice("gather")
    fused: dict[str, FusedLayers] = {}
    for name, model in models.items():
        if fuse and (layers := FusedLayers(model)) and why_not_paged(model, device, layers) is None:
            fused[name] = layers
            continue
        reason = why_not_paged(model, device)
        if reason is None:
            continue
        message = f"the {name} model cannot be served on pages: {reason}"
        if wanted == "paged":
            raise ValueError(message + '; engine="gather" serves it')
        warnings.warn(
            message + "; falling back to the gathering engine", RuntimeWarning, stacklevel=3
        )
        return EngineChoice("gather")
    return EngineChoice("paged", fused)


def choose_graphs(wanted: bool | None, engine: EngineName, device: str, compile: bool) -> bool:
    """Whether decode passes are replayed as graphs.

    Args:
        wanted: None for where it can be done.
        engine: That serves the pair.
        device: Where its pages lie.
        compile: Whether passes are to be compiled: on a device those that are captured.

    Raises:
        TypeError: No bool.
        ValueError: Something is wanted, and cannot be had.
    """
    if wanted is not None and not isinstance(wanted, bool):
        raise TypeError(f"graphs must be a bool or None, got {wanted!r}")
    if compile and engine != "paged":
        raise ValueError(f'compile=True needs engine="paged", this pair runs on {engine!r}')
    possible = engine == "paged" and device != "cpu"
    if wanted and not possible:
        raise ValueError(
            'graphs=True needs engine="paged" on a device, this pair runs on'
            f" {engine!r} on {device}"
        )
    if compile and possible and wanted is False:
        raise ValueError("compile=True on a device is for the passes that graphs=True captures")
    return possible if wanted is None else wanted
