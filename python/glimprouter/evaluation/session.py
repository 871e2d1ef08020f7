"""Where and by what an evaluation is run."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import glimprouter
from glimprouter.evaluation.records import SessionRecord

__all__ = ["this_session"]


def this_session() -> SessionRecord:
    """A record of this start: time, machine, commit. Needs torch."""
    from glimprouter.bench.harness import describe_machine

    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return SessionRecord(now, describe_machine(), _commit())


def _commit() -> str | None:
    """Of the source tree that this package lies in, with a plus where files were changed."""
    source = Path(glimprouter.__file__).parents[2]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
