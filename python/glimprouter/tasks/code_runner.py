"""Runs solutions against tests in child processes with limits of time and memory.

This keeps an accident of a program from harming the machine; it is no sandbox. Code that must not
be trusted at all belongs in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

CHILD = Path(__file__).parent / "code_child.py"
SLACK_SECONDS = 2.0  # beyond the processor's time: sleeping and starting count, too


class CodeTest(NamedTuple):
    """One test: what goes in, and what must come out.

    Attributes:
        input: Standard input, or arguments as JSON, one a line.
        output: Standard output, or the returned value as JSON.
        function: What is called; None for a program.
    """

    input: str
    output: str
    function: str | None


class Limits(NamedTuple):
    """What one test may take: seconds of a processor, mebibytes of address space."""

    seconds: int = 6
    megabytes: int = 1024


def passes(source: str, tests: Sequence[CodeTest], limits: Limits) -> bool:
    """Whether a solution passes all tests; the first that fails ends the trial."""
    with tempfile.TemporaryDirectory() as folder:
        solution = Path(folder) / "solution.py"
        solution.write_text(source, encoding="utf-8")
        return all(
            same_output(output, test)
            if (output := output_of(solution, test, limits)) is not None
            else False
            for test in tests
        )


def output_of(solution: Path, test: CodeTest, limits: Limits) -> str | None:
    """What a solution writes; None if it fails or exceeds a limit."""
    command = [sys.executable, "-I", str(CHILD), str(solution), *map(str, limits)]
    if test.function:
        command.append(test.function)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as taken:
        given.write(test.input.encode())
        given.seek(0)
        child = subprocess.Popen(
            command,
            stdin=given,
            stdout=taken,
            stderr=subprocess.DEVNULL,
            cwd=solution.parent,
            env={"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            status = child.wait(limits.seconds + SLACK_SECONDS)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        finally:
            # Whatever it started goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        taken.seek(0)
        return taken.read().decode(errors="replace") if status == 0 else None


def same_output(output: str, test: CodeTest) -> bool:
    """Whether an output is the right one: equal values, or lines of equal words or numbers."""
    if test.function:
        try:
            return bool(json.loads(output) == json.loads(test.output))
        except json.JSONDecodeError:
            return False
    written, right = output.strip().split("\n"), test.output.strip().split("\n")
    return len(written) == len(right) and all(map(_same_line, written, right))


def _same_line(written: str, right: str) -> bool:
    if written.strip() == right.strip():
        return True
    try:
        return [Decimal(w) for w in written.split()] == [Decimal(w) for w in right.split()]
    except InvalidOperation:
        return False
