"""Microbenchmarks of the fused operation: ratios measured in one process, never quoted.

`run_benchmarks` is what `glimprouter bench` and the scripts in `benchmarks/` call. It needs torch,
which is what the library is compared with (install the extra ``hf``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glimprouter.bench.harness import BenchmarkRow, Report, Section, Settings

__all__ = ["BENCHMARKS", "BenchmarkRow", "Report", "Section", "Settings", "run_benchmarks"]


def _glimpse(settings: Settings) -> list[Section]:
    from glimprouter.bench import glimpse

    return glimpse.run(settings)


def _sampling(settings: Settings) -> list[Section]:
    from glimprouter.bench import sampling

    return sampling.run(settings)


def _step(settings: Settings) -> list[Section]:
    from glimprouter.bench import step

    return step.run(settings)


def _decode(settings: Settings) -> list[Section]:
    from glimprouter.bench import decode

    return decode.run(settings)


def _kv(settings: Settings) -> list[Section]:
    from glimprouter.bench import kv

    return kv.run(settings)


def _batch(settings: Settings) -> list[Section]:
    from glimprouter.bench import batch

    return batch.run(settings)


def _hybrid(settings: Settings) -> list[Section]:
    from glimprouter.bench import hybrid

    return hybrid.run(settings)


def _latent(settings: Settings) -> list[Section]:
    from glimprouter.bench import latent

    return latent.run(settings)


def _passes(settings: Settings) -> list[Section]:
    from glimprouter.bench import passes

    return passes.run(settings)


BENCHMARKS: dict[str, Callable[[Settings], list[Section]]] = {
    "glimpse": _glimpse,
    "sampling": _sampling,
    "step": _step,
    "decode": _decode,
    "kv": _kv,
    "batch": _batch,
    "hybrid": _hybrid,
    "latent": _latent,
    "passes": _passes,
}


def run_benchmarks(
    names: Sequence[str] = tuple(BENCHMARKS), settings: Settings | None = None
) -> Report:
    """Runs the named benchmarks one after the other.

    Args:
        names: Keys of `BENCHMARKS`: "glimpse", "sampling", "step", "decode", "kv", "batch",
            "hybrid", "latent", "passes".
        settings: Length and size of the run; the default takes some minutes.

    Returns:
        The measurements with a description of the machine.

    Raises:
        ValueError: A name is unknown.
        ImportError: torch is not installed.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    chosen = settings or Settings()
    report = Report.for_this_machine()
    for name in names:
        report.sections.extend(BENCHMARKS[name](chosen))
    return report
