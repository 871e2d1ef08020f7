"""Time on a device: by events, by replays of a graph, with the second-level cache warm or cold.

On the CPU (smoke tests of the scripts) every clock is the host's, and a cold cache is not made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]


@dataclass
class Clock:
    """Measures calls on one device.

    Attributes:
        device: Of torch.
        repeats: Samples of which the median is taken.
        copies: Calls in one captured graph; their time is divided.
    """

    device: torch.device
    repeats: int = 30
    copies: int = 20
    _flush: torch.Tensor | None = field(default=None, init=False)

    @property
    def is_cuda(self) -> bool:
        """Whether the device has events and graphs."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """Of the device: goals in microseconds belong to one kind of GPU."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU"

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def _sample(self, call: Call) -> float:
        if not self.is_cuda:
            start = time.perf_counter()
            call()
            return 1e6 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)

    def events(self, call: Call, *, cold: bool = False) -> float:
        """Median microseconds between two events around a call."""
        for _ in range(3):
            call()
        samples = []
        for _ in range(self.repeats):
            if cold:
                self.flush_cache()
            samples.append(self._sample(call))
        return statistics.median(samples)

    def replay(self, call: Call, *, copies: int | None = None) -> float:
        """Median microseconds of a call inside a replayed graph that holds several."""
        if not self.is_cuda:
            return self.events(call)
        count = copies or self.copies
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()  # scratch memory is taken on the stream that captures
            stream.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(count):
                    call()
        torch.cuda.current_stream().wait_stream(stream)
        return self.events(graph.replay) / count

    def flush_cache(self) -> None:
        """Writes more than the second-level cache holds."""
        if not self.is_cuda:
            return
        if self._flush is None:
            self._flush = torch.empty(256 << 20, dtype=torch.uint8, device=self.device)
        self._flush.zero_()

    def copy_bandwidth(self, megabytes: int = 1024) -> float:
        """Bytes a second of a large copy on the device, read and written bytes counted."""
        size = (megabytes if self.is_cuda else 16) << 20
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        microseconds = self.events(lambda: target.copy_(source))
        return 2 * size / (1e-6 * microseconds)

    def read_bandwidth(self, megabytes: int = 1024) -> float:
        """Bytes a second of a large sum on the device, which reads and hardly writes."""
        size = (megabytes if self.is_cuda else 16) << 20
        source = torch.ones(size // 4, dtype=torch.float32, device=self.device)
        return size / (1e-6 * self.events(source.sum))
