"""The command line with the embedded pair: in a process of its own, or in this one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from glimprouter.cli import main as cli
from glimprouter.demo_pair import large_path, small_path

PAIR = ("--small", str(small_path()), "--large", str(large_path()))

Finished = subprocess.CompletedProcess[str]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "glimprouter", *arguments]


def run(*arguments: str, **options: Any) -> Finished:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, **options
    )


def ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, str, str]:
    """Exit status, stdout and stderr of the entry point in this process."""
    monkeypatch.setattr(sys, "argv", ["glimprouter", *arguments])
    status: Any
    try:
        status = cli.main()
    except SystemExit as error:
        status = error.code
    return (status, *capfd.readouterr())
