"""How a command ends: messages instead of tracebacks, 2 for an error, 130 for an interrupt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from glimprouter.cli.render import neutralise

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


class UserError(Exception):
    """An error of the user's input or files: its text is all that the user needs to see."""


@contextmanager
def clean_exit() -> Iterator[None]:
    """Turns what a user can cause into one line on stderr and an exit status.

    Raises:
        typer.Exit: Status 2 after an error, 130 after an interrupt.
    """
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise  # an end that a command chose; a closed pipe, which click ends quietly
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (UserError, ValueError, RuntimeError, OSError) as error:
        typer.echo(f"error: {neutralise(str(error)) or type(error).__name__}", err=True)
        raise typer.Exit(EXIT_ERROR) from None


def require_model_directory(option: str, directory: Path) -> None:
    """Checks that a directory holds a Hugging Face model, before torch is imported.

    Raises:
        UserError: It is no directory, or has no config.json.
    """
    if not directory.is_dir():
        raise UserError(
            f"{option} {directory} is not a directory; give a local directory with a Hugging Face "
            "model (config.json, weights, tokenizer)"
        )
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{option} {directory} has no config.json, so it holds no Hugging Face model"
        )
