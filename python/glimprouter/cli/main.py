"""Entry point: standard library only, so that a missing extra is a message and not a traceback."""

from __future__ import annotations

import sys

# Top-level module -> the distribution that brings it.
EXTRA_MODULES = {
    "typer": "typer",
    "rich": "rich",
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "transformers",
    "matplotlib": "matplotlib",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}
REPORT_MODULES = ("matplotlib", "scipy", "sklearn")
EXIT_ERROR = 2


def missing_extra_message(module: str) -> str:
    """What to install when a module of an extra cannot be found.

    Args:
        module: The top-level module that was not found.
    """
    extra = "evaluate" if module in REPORT_MODULES else "demo"
    return (
        f"glimprouter: this command needs {EXTRA_MODULES[module]}, which is not installed here. "
        f'Install the extra that has it: pip install "glimprouter[{extra}]"'
    )


def _escape_what_the_terminal_cannot_show() -> None:
    """A model may write any character; an ASCII or Latin-1 terminal must not end the run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def main() -> int:
    """Runs the command line on ``sys.argv``.

    Returns:
        Exit status: 0 done, 2 an error that the user can mend, 130 interrupted. (Most ends of a
        command leave through SystemExit with these numbers.)
    """
    _escape_what_the_terminal_cannot_show()
    try:
        from glimprouter.cli.app import app

        app(prog_name="glimprouter")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_MODULES:
            raise
        print(missing_extra_message(module), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130
    return 0
