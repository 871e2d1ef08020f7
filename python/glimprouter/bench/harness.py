"""How the benchmarks measure and report: interleaved rounds, paired ratios, medians."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glimprouter.files import write_atomically

if TYPE_CHECKING:
    import torch

Contender = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """Length and size of a run.

    Attributes:
        rounds: Number of interleaved rounds; medians are over these.
        round_seconds: Time that each contender gets in one round, in seconds.
        vocabulary: Length of a row of logits in the large benchmarks.
        batch: Rows of the batch that is spread over threads.
        compile: Whether graphs are compiled and measured too, which takes minutes at first.
    """

    rounds: int = 25
    round_seconds: float = 0.01
    vocabulary: int = 151_936
    batch: int = 64
    compile: bool = True

    @staticmethod
    def quick() -> Settings:
        """Returns a run of a few seconds, for smoke tests: its figures mean little."""
        return Settings(rounds=3, round_seconds=0.002, batch=8, compile=False)


@dataclass(frozen=True)
class BenchmarkRow:
    """One line of a table. Absent quantities are None.

    Attributes:
        name: What was measured.
        microseconds: Median time of a call.
        gigabytes_per_second: Bytes of logits read once, over that time.
        times_floor: Time over that of `torch.sum` of the same rows (lower is better).
        speedup: Time of the torch chain over this time (higher is better).
        gathered_bytes: Keys and values of the whole context that a call copies, in all layers.
        value: What is measured where that is no time: a share, or a count.
        goal: The bound that the project set itself, in words.
        met: Whether the measurement keeps it.
    """

    name: str
    microseconds: float
    gigabytes_per_second: float | None = None
    times_floor: float | None = None
    speedup: float | None = None
    gathered_bytes: int | None = None
    value: float | None = None
    goal: str | None = None
    met: bool | None = None


@dataclass(frozen=True)
class Section:
    """A table with its heading."""

    title: str
    rows: list[BenchmarkRow]


class Timings:
    """Seconds a call of several contenders, measured in the same rounds."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self._seconds = seconds

    def microseconds(self, name: str) -> float:
        """Returns the median time of a call."""
        return 1e6 * statistics.median(self._seconds[name])

    def ratio(self, numerator: str, denominator: str) -> float:
        """Returns the median over the rounds of the ratio of the two times."""
        pairs = zip(self._seconds[numerator], self._seconds[denominator], strict=True)
        return statistics.median(above / below for above, below in pairs)

    def microseconds_beyond(self, name: str, part: str) -> float:
        """Returns the median over the rounds of the time of `name` less that of `part`."""
        pairs = zip(self._seconds[name], self._seconds[part], strict=True)
        return 1e6 * statistics.median(whole - inside for whole, inside in pairs)


def _time_calls(call: Contender, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _calls_per_round(call: Contender, round_seconds: float) -> int:
    call()  # the first call may allocate
    count = 1
    while True:
        seconds = _time_calls(call, count)
        if seconds * count >= round_seconds or count >= 1 << 20:
            return count
        count = max(count + 1, min(int(round_seconds / max(seconds, 1e-9)) + 1, 8 * count))


def measure(contenders: Mapping[str, Contender], settings: Settings) -> Timings:
    """Times the contenders in interleaved rounds, each round in another order.

    A slow spell of the machine falls on all contenders of a round alike, so the ratio of two of
    them is far steadier than either time.
    """
    names = list(contenders)
    counts = {name: _calls_per_round(contenders[name], settings.round_seconds) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(settings.rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                seconds[name].append(_time_calls(contenders[name], counts[name]))
    finally:
        if collecting:
            gc.enable()
    return Timings(seconds)


def make_logits(kind: str, dtype: str, batch: int, vocabulary: int) -> torch.Tensor:
    """Returns logits [batch, vocabulary] on the CPU, the same at every call.

    Args:
        kind: "normal" for N(0, 2.5); "peaked" for the same with one element of 22 a row.
        dtype: "float32" or "bfloat16".
        batch: Number of rows.
        vocabulary: Length of a row.
    """
    import torch

    generator = np.random.default_rng(0)
    rows = (2.5 * generator.standard_normal((batch, vocabulary))).astype(np.float32)
    if kind == "peaked":
        rows[np.arange(batch), generator.integers(0, vocabulary, batch)] = 22.0
    return torch.from_numpy(rows).to(getattr(torch, dtype))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Lets torch use one thread, as the library does by default."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """Returns what a reader needs to judge the figures: processor, load, versions."""
    import torch

    import glimprouter

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(),
        "logical_processors": os.cpu_count(),
        "load_average_1_minute": load,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "glimprouter": glimprouter.build_info(),
    }


@dataclass
class Report:
    """All tables of a run and the machine they were measured on."""

    machine: dict[str, Any]
    sections: list[Section] = field(default_factory=list)

    @staticmethod
    def for_this_machine() -> Report:
        """Returns an empty report that describes this machine."""
        return Report(describe_machine())

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the report; a file that was there is replaced as a whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=2, default=str) + "\n")

    def print(self) -> None:
        """Prints the tables, with rich where it is installed."""
        from glimprouter.bench import table

        table.print_report(self)
