"""The measurements of the GPU suite run, on toys and the CPU: times there mean nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["product", "decode", "layers", "kv_pages", "fused_op", "hybrid", "generate_static"]


def run_suite(result: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "suite.py", "--device", "cpu", "--smoke", "--json", str(result)]
    finished = subprocess.run(
        [*command, *options],
        cwd=ROOT / "benchmarks" / "gpu",
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_suite(tmp_path_factory.mktemp("suite") / "result.json")


def test_every_part_of_the_suite_runs(report: dict[str, Any]) -> None:
    assert [name for name in report if name != "machine"] == PARTS  # what matters most first
    assert len(report["fused_op"]["rows"]) == 2 * 2 * 3  # batches, types, modes
    assert len(report["fused_op"]["nuclei"]) == 4
    names = ["norm", "rotation", "activation", "q_k_v", "o", "gate_up", "down"]
    assert [row["operation"] for row in report["layers"]["rows"]] == 2 * names
    assert all(row["torch_us"] > 0 for row in report["layers"]["rows"])
    products = [row["bytes"] for row in report["layers"]["rows"][3:7]]
    assert products == [2 * 64 * (128 + 64 + 64), 2 * 128 * 64, 2 * 64 * 256, 2 * 128 * 64]
    assert [row["tokens_computed_a_call"] for row in report["kv_pages"]["hand_off"]] == [1, 8, 64]
    attention = [row for row in report["kv_pages"]["rows"] if row["name"] == "attention"]
    loads = [(row["sequences"], row["loads"]) for row in attention]
    assert loads == [(1, "direct"), (1, "staged"), (3, "direct"), (3, "staged")]
    assert all(row["fraction_of_read"] > 0 for row in attention)
    assert [row["batch"] for row in report["hybrid"]["rows"]] == [1, 2]
    (row,) = report["decode"]["rows"]
    assert {"hf_generate_ms", "gather_ms", "paged_ms"} <= set(row)  # no engine refused the model
    (row,) = report["generate_static"]["rows"]
    assert math.isfinite(row["over_large_alone"])


def test_the_models_of_the_product_agree_as_often_as_they_were_told_to(
    report: dict[str, Any],
) -> None:
    agreements = report["product"]["agreements"]
    assert [found["wanted"] for found in agreements] == [0.75, 0.6]
    for found in agreements:
        assert found["measured"] == pytest.approx(found["wanted"], abs=0.05)
        # And so do the drafts of all contenders, as many as the clock has made of them.
        rows = [row for row in report["product"]["rows"] if row.get("agreement") == found["wanted"]]
        compared = sum(row["compared"] for row in rows)
        held = sum(row["accepted"] for row in rows) / compared
        deviation = math.sqrt(held * (1 - held) / compared)
        assert held == pytest.approx(found["wanted"], abs=0.05 + 4 * deviation)


def test_the_large_model_writes_its_share_and_drafts_change_no_token(
    report: dict[str, Any],
) -> None:
    rows = report["product"]["rows"]
    assert not [row for row in rows if "left_out" in row]
    routed = [row for row in rows if row["contender"].startswith("routed")]
    assert len(routed) == 2 * 2 * 2  # agreements, shares, drafts
    for row in routed:
        assert row["large_share_of_steps"] == pytest.approx(row["large_share"], abs=0.05)
        assert row["large_share_of_tokens"] == pytest.approx(row["large_share"], abs=0.05)
    drafting = [row for row in rows if row["contender"].endswith("drafts")]
    assert len(drafting) == 2 + 2 * 2
    assert all(row["same_tokens"] is True for row in drafting)
    for contender in ("large alone, drafts", "routed, drafts"):  # how many is up to the clock
        assert sum(row["accepted"] for row in drafting if row["contender"] == contender) > 0
    for row in rows:
        ratios = ["over_large_alone"] if row["contender"] != "large alone" else []
        ratios += ["over_speculative"] if row["contender"] == "routed, drafts" else []
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in ["ms_a_token", *ratios])


def test_what_does_not_fit_into_the_time_is_left_out_and_said_so(tmp_path: Path) -> None:
    report = run_suite(tmp_path / "result.json", "--part", "product", "--seconds", "0.001")
    assert report["product"]["left_out"].startswith("it takes about")


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
