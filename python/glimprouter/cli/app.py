"""The typer application: one module a command."""

from __future__ import annotations

from typing import Annotated

import typer

import glimprouter
from glimprouter.cli.bench import bench
from glimprouter.cli.calibrate import calibrate
from glimprouter.cli.demo import demo
from glimprouter.cli.evaluate import evaluate
from glimprouter.cli.generate import generate
from glimprouter.cli.serve import serve
from glimprouter.cli.trace import trace

HELP = "A small model writes the easy steps of a chain of thought, a large one the hard ones."

app = typer.Typer(
    name="glimprouter",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # its panels cut the names of long options at 80 columns
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(generate)
app.command()(calibrate)
app.command()(bench)
app.command()(trace)
app.command()(serve)
app.add_typer(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glimprouter {glimprouter.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""


app.callback(help=HELP)(_options)
