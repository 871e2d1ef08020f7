"""``glimprouter bench``: the microbenchmarks of the native core on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glimprouter.cli.errors import clean_exit


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="glimpse, sampling, step, decode, kv, batch; none given: all of them.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few seconds; the figures mean little.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write the measurements to this file.")
    ] = None,
) -> None:
    """Time the fused operation against torch, here and now; prints ratios of one process."""
    with clean_exit():
        from glimprouter.bench import BENCHMARKS, Settings, run_benchmarks

        settings = Settings.quick() if quick else Settings()
        report = run_benchmarks(names or tuple(BENCHMARKS), settings)
        report.print()
        if json is not None:
            report.to_json(json)
