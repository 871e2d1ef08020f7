"""Pairs wherever they run: in this process, or on engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel, Run
    from glimprouter.vllm import EngineRun, RoutedEngines

AnyPair: TypeAlias = "RoutedModel | RoutedEngines"

__all__ = ["AnyPair", "ended", "on_engines"]


def on_engines(model: AnyPair) -> TypeGuard[RoutedEngines]:
    """Whether a pair is on engines. Needs torch."""
    from glimprouter.vllm.routed import RoutedEngines

    return isinstance(model, RoutedEngines)


@contextmanager
def ended(run: Run | EngineRun) -> Iterator[None]:
    """Ends a run on engines when it is left: their requests would go on."""
    try:
        yield
    finally:
        close = getattr(run, "close", None)
        if close is not None:
            close()
