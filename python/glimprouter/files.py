"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text; a file that was there is replaced as a whole or not at all.

    A link is followed. A device or a pipe (``/dev/stdout``) is written to, never replaced.

    Raises:
        OSError: The file cannot be written.
        UnicodeEncodeError: The text holds lone surrogates.
    """
    target = Path(os.path.realpath(path))
    data = text.encode("utf-8")
    if target.exists() and not target.is_file():
        target.write_bytes(data)  # for a directory: an error that says so
        return
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
