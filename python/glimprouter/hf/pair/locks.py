"""Who may use a model now: one forward pass at a time, and none while weights are loaded.

A pass over pages puts its own attention and its own layers on a model for as long as it lasts, and
graphs have buffers of their own; so passes of one model must not overlap, whatever threads, runs
and pairs they belong to. While a model is loaded, torch has another default dtype in the whole
process.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class _Gate:
    """Many passes, or one load: who loads waits for the passes and holds the next ones up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passes = 0
        self._loading = False
        self._own = threading.local()  # how deep this thread is inside passes

    @contextmanager
    def passing(self) -> Iterator[None]:
        depth = getattr(self._own, "depth", 0)
        if depth == 0:
            with self._changed:
                self._changed.wait_for(lambda: not self._loading)
                self._passes += 1
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            if depth == 0:
                with self._changed:
                    self._passes -= 1
                    self._changed.notify_all()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is part of a pass that another one has begun: it waits for nobody."""
        self._own.depth = 1
        try:
            yield
        finally:
            self._own.depth = 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        if getattr(self._own, "depth", 0) > 0:
            raise RuntimeError(
                "a pair cannot be loaded inside of a forward pass (a hook of a model?): loading"
                " waits for all passes; load it before"
            )
        with self._changed:
            self._changed.wait_for(lambda: not self._loading)
            self._loading = True
        try:  # an interrupt of the wait opens the gate again
            with self._changed:
                self._changed.wait_for(lambda: self._passes == 0)
            yield
        finally:
            with self._changed:
                self._loading = False
                self._changed.notify_all()


_gate = _Gate()
_flights = _Gate()  # passes in a thread of their own, or one recording
_lent = threading.local()  # what another thread holds for this one
_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


def _lock_of(model: Any) -> Any:
    with _locks_guard:
        return _locks.setdefault(model, threading.RLock())


@contextmanager
def exclusive(*models: Any) -> Iterator[None]:
    """Holds these models: other threads wait. A thread may hold what it holds already.

    Args:
        *models: The models; one object may be named twice.
    """
    with ExitStack() as held:
        held.enter_context(_gate.passing())
        # In one order everywhere, or two pairs that share models could wait for one another.
        for model in sorted({id(model): model for model in models}.values(), key=id):
            if id(model) not in getattr(_lent, "models", ()):
                held.enter_context(_lock_of(model))
        yield


@contextmanager
def lent(*models: Any) -> Iterator[None]:
    """This thread computes a pass for one that holds the models, and waits for this one.

    So it may hold them, too, and must not load: hooks of a model find what they find in a pass of
    the other thread. Meanwhile nothing is recorded.
    """
    with _flights.passing(), _gate.inside():
        _lent.models = frozenset(map(id, models))
        try:
            yield
        finally:
            _lent.models = frozenset()


@contextmanager
def recording() -> Iterator[None]:
    """Nothing is computed in threads that models are lent to: what is recorded is of this thread.

    How a recording is watched belongs to the process.
    """
    with _flights.loading():
        yield


@contextmanager
def loading() -> Iterator[None]:
    """No forward pass of any pair begins or goes on, and nobody else loads.

    Raises:
        RuntimeError: The calling thread is inside of a forward pass, and would wait for itself.
    """
    with _gate.loading():
        yield
