"""Entry point: standard library only, so that a missing extra is a message and not a traceback."""

from __future__ import annotations

import sys

# Extra -> the modules that a command may miss, each with the distribution that brings it.
EXTRAS = {
    "demo": {
        "typer": "typer",
        "rich": "rich",
        "torch": "torch",
        "transformers": "transformers",
        "safetensors": "transformers",
    },
    "serve": {
        "fastapi": "fastapi",
        "starlette": "fastapi",
        "pydantic": "fastapi",
        "uvicorn": "uvicorn",
        "h11": "uvicorn",
        "prometheus_client": "prometheus-client",
    },
    "vllm-client": {"httpx": "httpx"},
    "evaluate": {
        "matplotlib": "matplotlib",
        "scipy": "scipy",
        "sklearn": "scikit-learn",
    },
}
EXIT_ERROR = 2


def extra_of(module: str) -> str | None:
    """The extra that brings a top-level module; None where none does."""
    return next((extra for extra, modules in EXTRAS.items() if module in modules), None)


def missing_extra_message(module: str, extra: str) -> str:
    """What to install when a module of an extra cannot be found.

    Args:
        module: The top-level module that was not found.
        extra: That brings it.
    """
    return (
        f"glimprouter: this command needs {EXTRAS[extra][module]}, which is not installed here."
        f' Install the extra that has it: pip install "glimprouter[{extra}]"'
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
        extra = extra_of(module)
        if extra is None:
            raise
        print(missing_extra_message(module, extra), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130
    return 0
