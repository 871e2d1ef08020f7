"""Routing on vLLM engines: a gate inside of each, and a client that runs a pair of them.

``vllm serve --logits-processors glimprouter.vllm:GlimpGate --logprobs-mode processed_logits`` makes
an engine that decides at each step's start by its own logits. :class:`RoutedEngines` sends it
requests, to a process elsewhere or in this one. Only the gate and engines in this process need vLLM
(docs/vllm.md has the versions); the client needs the extra ``hf``, and ``httpx`` for servers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimprouter.vllm.engines.base import EngineLost, EngineRefused, EngineUsage
    from glimprouter.vllm.engines.in_process import gated_engine
    from glimprouter.vllm.engines.server import Server
    from glimprouter.vllm.gate.processor import GlimpGate
    from glimprouter.vllm.routed import RoutedEngines
    from glimprouter.vllm.run import EngineRun

__all__ = [
    "EngineLost",
    "EngineRefused",
    "EngineRun",
    "EngineUsage",
    "GlimpGate",
    "RoutedEngines",
    "Server",
    "gated_engine",
]

_HOMES = {
    "EngineLost": "engines.base",
    "EngineRefused": "engines.base",
    "EngineRun": "run",
    "EngineUsage": "engines.base",
    "GlimpGate": "gate.processor",
    "RoutedEngines": "routed",
    "Server": "engines.server",
    "gated_engine": "engines.in_process",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is asked for: an engine needs the gate only, a client no vLLM."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
