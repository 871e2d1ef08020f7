"""How a computation on a device is recorded and replayed: a CUDA graph, or running it again."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

import torch

# Of torch's warnings: what is looked for, and that the mode which looks for it is a prototype.
_SYNCHRONISES, _PROTOTYPE = "synchronizing CUDA operation", "Synchronization debug mode"


class Recording(NamedTuple):
    """A computation that can be repeated.

    Attributes:
        result: What it computes, at the same place every time.
        replay: Computes it again from what its inputs hold now, on torch's current stream.
        computed: Whether recording has computed it, too.
    """

    result: torch.Tensor
    replay: Callable[[], None]
    computed: bool = False


class Recorder(Protocol):
    """Records computations of one device. Replays follow one another, in any order."""

    def rehearse(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs once.

        Raises:
            RuntimeError: It cannot be recorded: its code waits for the device.
        """

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Records what a rehearsed run does; the recording says whether it computed that, too."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: only results outlive a replay.

    torch frees the pool with the last of its graphs, and then it can never be captured into again:
    the next graph begins another one.
    """

    def __init__(self, device: str) -> None:
        """For a device such as ``"cuda:0"``."""
        self._device = torch.device(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._sharing: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()  # of that pool
        self._broken: list[torch.cuda.CUDAGraph] = []
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def rehearse(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs once and watches for synchronisation.

        A capture that breaks leaves torch's allocator and generators in disorder, so what would
        break it is looked for before. What looks for it belongs to the process: another thread that
        waits for the device meanwhile is taken for this code.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = run()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = False
        for warning in seen:
            if _SYNCHRONISES in str(warning.message):
                waits = True
            elif _PROTOTYPE not in str(warning.message):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        if waits:
            raise RuntimeError("its code waits for the device, which a graph cannot hold")
        return result

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Captures without computing; other threads may go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        sharing = list(self._sharing)  # none of them goes before the capture has begun
        if not sharing:
            self._pool = torch.cuda.graph_pool_handle()
        with (
            torch.cuda.device(self._device),
            # Leaves the caller's stream current: a capture that breaks would leave its own.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            _no_collection(),
        ):
            capture = torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            )
            try:
                with capture:
                    result = run()
            except BaseException:
                self._clean_up(graph)
                raise
        self._sharing.add(graph)
        return Recording(result, graph.replay)

    def _clean_up(self, broken: torch.cuda.CUDAGraph) -> None:
        """After a capture that broke, for which torch has no remedy of its own."""
        self._broken.append(broken)  # the allocator may go on asking it
        self._sharing.clear()  # the next graph begins another pool
        # A capture that succeeds tells the random generators that none is under way any more.
        with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=self._device)


class RepeatingRecorder:
    """Runs again instead of a replay: for a device that works on host memory, in tests."""

    def rehearse(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs once."""
        return run()

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Keeps one result, which every replay overwrites."""
        result = run()

        def replay() -> None:
            with torch.inference_mode():
                result.copy_(run())

        return Recording(result, replay, computed=True)


def recorder_for(device: str) -> Recorder:
    """The recorder of a device of this build other than the CPU."""
    return CudaRecorder(device) if device.startswith("cuda") else RepeatingRecorder()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage may hold device memory, and to free that would break a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
