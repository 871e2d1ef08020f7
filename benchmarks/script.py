"""The command line that the benchmark scripts share."""

from __future__ import annotations

import argparse

from glimprouter.bench import Settings, run_benchmarks


def main(name: str, description: str | None) -> None:
    """Runs one benchmark of `glimprouter.bench`, prints its tables, writes JSON when asked.

    Args:
        name: Key of `glimprouter.bench.BENCHMARKS`.
        description: Text for --help, the docstring of the calling script.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds; figures mean little")
    parser.add_argument("--json", metavar="PATH", help="also write the measurements to PATH")
    arguments = parser.parse_args()
    report = run_benchmarks([name], Settings.quick() if arguments.quick else Settings())
    report.print()
    if arguments.json:
        report.to_json(arguments.json)
