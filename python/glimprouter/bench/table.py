"""Tables of a benchmark report for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glimprouter.bench.harness import BenchmarkRow, Report, Section

COLUMNS = ("", "us", "GB/s", "x torch.sum", "speed-up", "MB gathered", "value", "goal")

LOG_WIDTH = 124  # columns, where the output is a file or a pipe


def _cells(row: BenchmarkRow) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    goal = ""
    if row.goal is not None:
        goal = row.goal if row.met is None else f"{row.goal}: {'met' if row.met else 'missed'}"
    return (
        row.name,
        number(row.microseconds, 2),
        number(row.gigabytes_per_second, 1),
        number(row.times_floor, 2),
        number(row.speedup, 1),
        number(None if row.gathered_bytes is None else row.gathered_bytes / 1e6, 1),
        number(row.value, 3),
        goal,
    )


def _print_rich(section: Section) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=section.title, title_justify="left")
    for index, column in enumerate(COLUMNS):
        table.add_column(
            column, justify="left" if index in (0, len(COLUMNS) - 1) else "right", no_wrap=True
        )
    for row in section.rows:
        style = "red" if row.met is False else None
        table.add_row(*_cells(row), style=style)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(table)


def _print_plain(section: Section) -> None:
    lines = [COLUMNS, *(_cells(row) for row in section.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    print(f"\n{section.title}")
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)]
        print("  ".join([*cells, line[-1]]).rstrip())


def print_report(report: Report) -> None:
    """Prints the machine on one line and one table a section."""
    machine = report.machine
    library = machine["glimprouter"]
    print(
        f"{machine['processor']}, {machine['logical_processors']} logical processors, load "
        f"{machine['load_average_1_minute']}; {library['instruction_set']}; "
        f"torch {machine['torch']}, Python {machine['python']}"
    )
    try:
        import rich  # noqa: F401  (only to learn whether it is there)
    except ImportError:
        show = _print_plain
    else:
        show = _print_rich
    for section in report.sections:
        show(section)
