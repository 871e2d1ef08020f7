"""The Python functions return the same bits whichever instruction set computed them.

tests/cpp/test_golden.cpp pins the core over 10^5 rows; this pins what passes through the binding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glimprouter as gr

pytestmark = pytest.mark.emulator

# A change of this constant is a change of the specified arithmetic.
EXPECTED = "f93b38f7bc17098148b62f3680c7b8a935bb876104f52dfe157a03e540979ce6"

GOLDEN_PROGRAM = Path(__file__).parents[1] / "support" / "reference" / "golden.py"


def run_with(instruction_set: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GLIMPROUTER_ISA": instruction_set}
    return subprocess.run(
        [sys.executable, str(GOLDEN_PROGRAM)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("instruction_set", gr.build_info()["instruction_sets_supported"])
def test_every_instruction_set_gives_the_specified_bits(instruction_set: str) -> None:
    finished = run_with(instruction_set)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == EXPECTED


def test_generic_is_always_there() -> None:
    assert "generic" in gr.build_info()["instruction_sets_supported"]
    assert gr.build_info()["instruction_set"] in gr.build_info()["instruction_sets_supported"]


def test_an_unknown_instruction_set_is_an_error_at_import() -> None:
    finished = run_with("sse9")
    assert finished.returncode != 0
    assert "sse9" in finished.stderr
    assert "generic" in finished.stderr  # the message names what there is
