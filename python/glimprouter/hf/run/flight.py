"""A pass of the large model in a thread of its own, while this one goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch


class Flight:
    """One computation in another thread. Only the thread that made it asks for what came of it.

    Attributes:
        seconds: That it took.
    """

    def __init__(self, compute: Callable[[], torch.Tensor]) -> None:
        """Nothing runs yet.

        Args:
            compute: Gives the logits, complete in memory.
        """
        self.seconds = 0.0
        self._compute = compute
        self._order = threading.Lock()  # of beginning and giving up
        self._begun = self._void = False
        self._over = threading.Event()
        self._logits: torch.Tensor | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """In the other thread: what is raised there waits for :meth:`logits`."""
        with self._order:
            if self._void:
                return
            self._begun = True
        started = time.perf_counter()
        try:
            self._logits = self._compute()
        except BaseException as error:
            self._error = error
        self.seconds = time.perf_counter() - started
        self._over.set()

    @property
    def over(self) -> bool:
        """Whether :meth:`logits` would not wait."""
        return self._over.is_set()

    def logits(self) -> torch.Tensor:
        """Waits for what came of it.

        Raises:
            BaseException: What the computation has raised.
        """
        self._over.wait()
        if self._error is not None:
            raise self._error
        assert self._logits is not None
        return self._logits

    def end(self) -> None:
        """Nothing of it runs, or ever will, once this returns or raises.

        A pass cannot be broken off: an interrupt is raised when it is over.
        """
        interrupt: BaseException | None = None
        while True:
            try:
                with self._order:
                    self._void = True
                if self._begun:
                    self._over.wait()
                break
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt
