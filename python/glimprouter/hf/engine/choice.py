"""Which engine serves a pair, and which of its layers run in their fused form: found by trying."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.trial import why_not_paged

EngineName = Literal["paged", "gather"]
Execution = Literal["eager", "graphs", "compiled"]
EXECUTIONS = ("auto", "eager", "graphs", "compiled")


@dataclass(frozen=True)
class EngineChoice:
    """What the trials found.

    Attributes:
        name: Name of the engine.
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
        device: The device of the pages.
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


def check_execution(wanted: str) -> None:
    """Refuses a name that is none, before anything is tried.

    Raises:
        ValueError: Another one.
    """
    if wanted not in EXECUTIONS:
        names = ", ".join(f'"{name}"' for name in EXECUTIONS)
        raise ValueError(f"execution must be one of {names}, got {wanted!r}")


def choose_execution(wanted: str, engine: EngineName, device: str) -> Execution:
    """How forward passes over pages are computed.

    Args:
        wanted: One of :data:`EXECUTIONS`; ``"auto"`` is graphs where they can be had.
        engine: That serves the pair.
        device: Where its pages lie.

    Raises:
        ValueError: What is wanted cannot be had.
    """
    replays = engine == "paged" and device != "cpu"
    if wanted == "graphs" and not replays:
        raise ValueError(
            'execution="graphs" needs engine="paged" on a device, this pair runs on'
            f' {engine!r} on {device}; "auto" takes what can be had'
        )
    if wanted == "compiled" and engine != "paged":
        raise ValueError(
            f'execution="compiled" needs engine="paged", this pair runs on {engine!r}; "auto" takes'
            " what can be had"
        )
    if wanted == "auto":
        return "graphs" if replays else "eager"
    return wanted  # type: ignore[return-value]
