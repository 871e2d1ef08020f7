"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

__all__ = ["check_writable", "write_atomically"]


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
    partial = _beside(target)
    try:
        partial.write_bytes(data)
        os.replace(partial, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):  # the name of the file that was asked for, not of ours
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Finds out, before hours of work, whether :func:`write_atomically` can write a file.

    Nothing is left behind: a file that is there stays as it is.

    Raises:
        OSError: It cannot be written; the error names ``path`` and the reason.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a directory; give a file", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "its directory does not exist; give a file in one that does", str(path)
        )
    if target.exists() and not target.is_file():  # a device or a pipe
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    partial = _beside(target)
    try:
        partial.touch(exist_ok=False)
        partial.unlink()
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _beside(target: Path) -> Path:
    """A new name in the same directory, so that a file can be moved into place."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")
