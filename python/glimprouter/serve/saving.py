"""Sequences that are saved when a server stops; ``resume`` of a pair goes on with them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from glimprouter.serve.errors import Failure

if TYPE_CHECKING:
    from glimprouter.hf import Run
    from glimprouter.vllm import EngineRun

_log = logging.getLogger("glimprouter.serve")
SUFFIX = ".sequence"


def save_sequence(run: Run | EngineRun, index: int, name: str, directory: Path) -> Failure | None:
    """Saves a sequence under a name; what its client is told. None where it has not begun.

    Args:
        run: Whose.
        index: In the run.
        name: Of the file, without its suffix.
        directory: Where it goes.
    """
    try:
        saved = run.save(index)
    except ValueError:  # it waits for a row, or has ended
        return None
    if not write_saved(saved, name, directory):
        return None
    return Failure(f"the server stops; what there is was saved as {name}", 503)


def write_saved(saved: bytes, name: str, directory: Path) -> bool:
    """Writes a saved sequence to a file of that name; whether that was possible."""
    try:
        _write(directory, f"{name}{SUFFIX}", saved)
    except OSError as error:
        _log.error("cannot save %s: %s", name, error)
        return False
    return True


def _write(directory: Path, name: str, content: bytes) -> None:
    """A whole file or none, for nobody else to read: there are prompts in it."""
    partial = directory / f".{name}"
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / name)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
