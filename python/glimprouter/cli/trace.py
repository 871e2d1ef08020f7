"""``glimprouter trace``: a saved chain of thought on the terminal, or as a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from glimprouter.cli import render
from glimprouter.cli.errors import UserError, clean_exit
from glimprouter.files import write_atomically
from glimprouter.trace import Trace
from glimprouter.trace.html import trace_to_html
from glimprouter.trace.published_client import TraceFormat, read_any_trace, threshold_bounds
from glimprouter.trace.totals import (
    Totals,
    TraceTotals,
    deciding_rule,
    format_share,
    settings_recorded,
    unfinished_reason,
)


def check_page_path(page: Path | None, trace: Path) -> None:
    """Finds out before anything is printed that the page cannot be written.

    Raises:
        UserError: The path is a directory, its directory does not exist, or it is the trace itself.
    """
    if page is None:
        return
    if page.is_dir() or not page.parent.is_dir():
        raise UserError(f"--html {page}: give a file in a directory that exists")
    if page.exists() and trace.exists() and page.samefile(trace):
        raise UserError(f"--html {page}: this is the trace itself; give another file")


def read_trace(file: Path) -> tuple[Trace, TraceFormat]:
    """Reads a trace of glimprouter or a result of the published client.

    Raises:
        UserError: The file cannot be read.
        ValueError: It is neither, or damaged.
    """
    try:
        return read_any_trace(file)
    except OSError as error:
        raise UserError(f"cannot read the trace {file}: {error.strerror}") from error


def source_note(trace: Trace, source: TraceFormat) -> str | None:
    """What must be known of a trace from a foreign file, or None."""
    if source != "published_client":
        return None
    note = (
        "From the published client's file: H is over the 20 most likely tokens; prompt, tau and "
        "times are not recorded."
    )
    low, high = threshold_bounds(trace)
    if low < high < math.inf:
        note += f" The routes fit {low:.3f} < tau <= {high:.3f}."
    return note


def _print_chain(console: Console, trace: Trace) -> None:
    if trace.prompt is not None:
        console.print(Text(render.one_line(trace.prompt), "bold"), soft_wrap=True)
    if trace.steps:
        console.print(render.step_header())
    for step in trace.steps:
        console.print(render.step_line(step), soft_wrap=True)
    if trace.answer:
        console.print(Text("\nanswer", "bold"))
        render.write(console, trace.answer, render.WRITER_STYLE[trace.answer_model])
        console.print()
    console.print()


def _totals_row(name: str, part: Totals, whole: Totals) -> list[str]:
    return [
        name,
        f"{part.steps}",
        format_share(part.steps, whole.steps),
        f"{part.tokens}",
        format_share(part.tokens, whole.tokens),
        f"{part.seconds:.2f}" if part.seconds else "-",
    ]


def _print_totals(console: Console, trace: Trace) -> None:
    totals = TraceTotals.of(trace)
    answer = f"{trace.answer_seconds:.2f}" if trace.answer_seconds else "-"
    lines = render.table_lines(
        ["", "steps", "share", "tokens", "share", "seconds"],
        [
            _totals_row("small", totals.small, totals.thinking),
            _totals_row("large", totals.large, totals.thinking),
            _totals_row("thinking", totals.thinking, totals.thinking),
            [f"answer ({trace.answer_model})", "", "", f"{trace.answer_tokens}", "", answer],
        ],
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    seconds = f" in {totals.seconds:.2f} s" if totals.seconds else ""
    settings = f"; {render.one_line(deciding_rule(trace))}, seed {trace.seed}"
    console.print(
        f"{trace.total_tokens} tokens{seconds}; ended by: {render.one_line(trace.end_reason)}"
        + (settings if settings_recorded(trace) else ""),
        soft_wrap=True,
    )
    if (reason := unfinished_reason(trace)) is not None:
        console.print(Text(f"not finished: {render.one_line(reason)}", "red"), soft_wrap=True)


def trace(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A trace (generate --json), or a result of the published client."
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Also write it to this file, as a page for a browser."),
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain text, as where the output is no terminal.")
    ] = False,
) -> None:
    """Show a saved chain of thought: who wrote what, at which entropy, and the totals."""
    with clean_exit():
        check_page_path(html, file)
        chain, source = read_trace(file)
        note = source_note(chain, source)
        if html is not None:
            write_atomically(html, trace_to_html(chain, note=note))
        console = render.make_console(plain=plain, no_color=no_color)
        _print_chain(console, chain)
        _print_totals(console, chain)
        if note is not None:
            console.print(note, soft_wrap=True)
        if html is not None:
            typer.echo(f"html: {html}", err=True)
