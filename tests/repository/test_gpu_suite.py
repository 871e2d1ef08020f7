"""The measurements of the GPU suite run, on toys and the CPU: what they say there means nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_part_of_the_suite_runs(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, "suite.py", "--device", "cpu", "--smoke", "--json", str(result)]
    finished = subprocess.run(
        command,
        cwd=ROOT / "benchmarks" / "gpu",
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(result.read_text())
    assert {"machine", "fused_op", "kv_pages", "decode", "routed_loop", "hybrid"} <= set(report)
    assert len(report["fused_op"]["rows"]) == 2 * 2 * 3  # batches, types, modes
    assert [row["tokens_computed_a_call"] for row in report["kv_pages"]["hand_off"]] == [1, 8, 64]
    assert report["routed_loop"]["tokens"] > 0
    assert [row["batch"] for row in report["hybrid"]["rows"]] == [1, 2]
    (row,) = report["decode"]["rows"]
    assert {"hf_generate_ms", "gather_ms", "paged_ms"} <= set(row)  # no engine refused the model


def test_the_script_of_the_suite_is_valid_bash() -> None:
    script = ROOT / "benchmarks" / "gpu_suite.sh"
    finished = subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "gpu").glob("test_*.py")), ids=lambda path: path.stem
)
def test_the_tests_that_need_a_gpu_can_be_imported(path: Path) -> None:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    specification.loader.exec_module(importlib.util.module_from_spec(specification))
