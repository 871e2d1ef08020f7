"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopThread:
    """Runs coroutines; ends with the process, or when it is closed."""

    def __init__(self) -> None:
        """Starts the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="glimprouter-engines", daemon=True
        )
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether it is the thread that asks."""
        return threading.current_thread() is self._thread

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Begins a coroutine, and does not wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """What a coroutine returns; it is cancelled where the caller is interrupted."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def do(self, act: Callable[[], _T]) -> _T:
        """What a function returns that is called in the thread, also by the thread itself."""
        if self.is_here:
            return act()

        async def called() -> _T:
            return act()

        return self.call(called())

    def post(self, act: Callable[[], object]) -> None:
        """Has a function called in the thread, soon."""
        self._loop.call_soon_threadsafe(act)

    def close(self) -> None:
        """Ends the thread, and what is left of tasks and iterators that nobody has finished.

        A task of an engine that outlived its loop would be told so by the garbage collector, at
        whatever moment of whichever thread.
        """
        self.call(_cancel_others())
        self.call(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    """Cancels every other task of this loop, and waits until all have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
