"""The measurements of the GPU suite run, on toys and the CPU: times there mean nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_scripts import script
from glimprouter import kv
from glimprouter.hf.graphs.recorders import RepeatingRecorder

BEST_DRAFTS = "best: routed, drafts"
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
    names = ["norm", "rotation", "activation", "q_k_v", "o", "gate_up", "down", "lm_head"]
    assert [row["operation"] for row in report["layers"]["rows"]] == 2 * names
    assert all(row["torch_us"] > 0 for row in report["layers"]["rows"])
    products = [row["bytes"] for row in report["layers"]["rows"][3:8]]
    layer = [64 * (128 + 64 + 64), 128 * 64, 64 * 256, 128 * 64]
    assert products == [2 * weights for weights in (*layer, 64 * 2048)]
    assert [row["tokens_computed_a_call"] for row in report["kv_pages"]["hand_off"]] == [1, 8, 64]
    attention = [row for row in report["kv_pages"]["rows"] if row["name"] == "attention"]
    loads = [(row["sequences"], row["loads"]) for row in attention]
    assert loads == [(1, "direct"), (1, "staged"), (3, "direct"), (3, "staged")]
    assert all(row["fraction_of_read"] > 0 for row in attention)
    assert all(row["met"] is None for row in attention)  # 64 tokens have no goal
    assert [row["batch"] for row in report["hybrid"]["rows"]] == [1, 2]
    (row,) = report["decode"]["rows"]
    assert {"hf_generate_ms", "gather_ms", "paged_ms"} <= set(row)  # no engine refused the model
    assert "fused_staged_refused" in row  # graphs need a device
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
    assert len(drafting) == 2 + 2 * 2 + 1  # and once at its best
    drafting = [row for row in drafting if not row["contender"].startswith("best")]
    assert all(row["same_tokens"] is True for row in drafting)
    for contender in ("large alone, drafts", "routed, drafts"):  # how many is up to the clock
        assert sum(row["accepted"] for row in drafting if row["contender"] == contender) > 0
    for row in rows:
        ratios = ["over_large_alone"] if row["contender"] != "large alone" else []
        ratios += ["over_speculative"] if row["contender"] == "routed, drafts" else []
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in ["ms_a_token", *ratios])


def test_the_product_is_measured_at_its_best_too(report: dict[str, Any]) -> None:
    """Against the large model alone at its best, whose text is what it is by default."""
    rows = report["product"]["rows"]
    alone, drafts = [row for row in rows if row["contender"].startswith("best")]
    assert [row["contender"] for row in (alone, drafts)] == ["best: large alone", BEST_DRAFTS]
    assert alone["same_tokens"] is True
    assert alone["large_share_of_steps"] == 1
    assert (drafts["agreement"], drafts["large_share"]) == (0.75, 0.15)
    assert drafts["large_share_of_steps"] == pytest.approx(0.15, abs=0.05)
    assert drafts["over_best_alone"] == alone["ms_a_token"] / drafts["ms_a_token"]
    assert "goal_over_best_alone" in drafts
    names = ["toy pair, small", "toy pair, large"]
    assert [row["model"] for row in report["product"]["captures"]] == names


def test_at_their_best_contenders_are_what_is_off_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    product = script("gpu", "product")
    seen: list[tuple[Any, bool, str]] = []

    class Played:
        def __init__(self, *_: Any, drafts: Any, fused_layers: Any, **__: Any) -> None:
            self.own = drafts, fused_layers is True
            self.execution = "eager"

        def generate(self, *_: Any, **__: Any) -> list[Any]:
            seen.append((*self.own, kv.set_attention_loads("direct")))
            kv.set_attention_loads(seen[-1][-1])
            return []

    monkeypatch.setattr(product, "RoutedModel", Played)
    monkeypatch.setattr(product, "AgreeingPair", lambda *_: None)
    clock = script("gpu", "clock").Clock(torch.device("cpu"))
    pair = ("toy pair, small", "toy pair, large")
    budget = script("gpu", "budget").Budget()
    played = product._prepare(clock, pair, 4, budget, lambda _: None)
    for contender in product.DRAFTS:
        played.write(contender, 1, [[1]])
    default = [(drafts, False, "direct") for drafts in (0, "auto", 0, "auto")]
    assert seen == [*default, (0, True, "staged"), ("auto", True, "staged")]


def test_goals_belong_to_the_gpu_that_they_were_set_for() -> None:
    decode, kv_pages = script("gpu", "decode"), script("gpu", "kv_pages")
    times = {"graphs_ms": 6.8, "fused_staged_ms": 3.1, "fused_refused": "why"}
    goal = decode.goal_of("4B", "NVIDIA H200", times)
    assert (goal["goal_ms"], goal["fastest"], goal["met"]) == (3.2, "fused_staged", True)
    assert decode.goal_of("32B", "NVIDIA H200", {"graphs_ms": 18.1})["met"] is False
    assert decode.goal_of("4B", "NVIDIA A100", times)["met"] is None
    assert decode.goal_of("4B", "NVIDIA A100", times)["goal_device"] == "H200"
    assert decode.goal_of("4B", "NVIDIA H200", {"hf_generate_ms": 1.0})["met"] is None
    assert decode.goal_of("8B", "NVIDIA H200", times) == {}
    assert kv_pages.goal_of(4095, 0.9) == {"goal_fraction_of_read": None, "met": None}
    assert kv_pages.goal_of(4096, 0.6)["met"] is True
    assert kv_pages.goal_of(16_384, 0.59)["met"] is False


def test_captures_are_counted_by_model() -> None:
    captures = script("gpu", "captures")

    class Pass:
        def __init__(self, model: object) -> None:
            self._model = model

        def forward(self) -> torch.Tensor:
            time.sleep(0.02)
            return torch.zeros(1)

    class Recorder(RepeatingRecorder):
        pass

    models = {"small": object(), "large": object()}
    before = Recorder.record
    with captures.counted(models, Recorder) as found:
        for name, count in (("small", 3), ("large", 1)):
            for _ in range(count):
                run = Pass(models[name]).forward
                Recorder().rehearse(run)
                Recorder().record(run)
        Recorder().record(Pass(object()).forward)  # of a model that nobody asked about
    assert Recorder.record is before
    assert [own["sizes"] for own in found.values()] == [3, 1]
    assert found["small"]["seconds"] >= 6 * 0.02
    shapes = {"small": "4B", "large": "32B"}
    small, large = captures.rows_of(found, shapes, "NVIDIA H200")
    assert small["seconds_of_ten_sizes"] == pytest.approx(found["small"]["seconds"] * 10 / 3)
    assert (small["goal_seconds_of_ten_sizes"], small["met"]) == (10.0, True)
    assert "met" not in large  # it has no goal
    slow = {"small": {"sizes": 2, "seconds": 2.1}}
    assert captures.rows_of(slow, shapes, "NVIDIA H200")[0]["met"] is False
    assert captures.rows_of(slow, shapes, "NVIDIA A100")[0]["met"] is None


def test_more_rows_than_our_products_take_are_torchs_alone() -> None:
    layers = script("gpu", "layers")
    clock = script("gpu", "clock").Clock(torch.device("cpu"))
    assert max(layers.ROWS) >= 16
    for rows, takes in ((layers.MOST_ROWS, True), (layers.MOST_ROWS + 1, False)):
        shapes = layers.Shapes(clock, "toy", rows)
        shapes.operations = object()  # as where there is a device
        _, (ours, theirs) = shapes.product(*shapes.matrices()["lm_head"])
        assert (ours is not None) is takes
        assert theirs()[0].shape == (1, rows, 2048)


def test_what_does_not_fit_into_the_time_is_left_out_and_said_so(tmp_path: Path) -> None:
    report = run_suite(tmp_path / "result.json", "--part", "product", "--seconds", "0.001")
    assert report["product"]["left_out"].startswith("it takes about")


def test_the_script_of_the_suite_is_valid_bash() -> None:
    script = ROOT / "benchmarks" / "gpu_suite.sh"
    finished = subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_sanitizers_are_given_all_small_cases() -> None:
    """Of routed steps, drafts, pages, padded passes and fused layers."""
    script = (ROOT / "benchmarks" / "gpu_suite.sh").read_text()
    (named,) = re.findall(r"small_cases=\(([^)]*)\)", script)
    places = [ROOT / place for place in named.split()]
    assert all(place.exists() for place in places)
    files = [
        file
        for file in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^def test_\w+_small_case\(", file.read_text(), re.MULTILINE)
    ]
    assert all(any(file.is_relative_to(place) for place in places) for file in files)
    for place in places:
        assert any(file.is_relative_to(place) for file in files), f"{place} has none"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "gpu").glob("test_*.py")), ids=lambda path: path.stem
)
def test_the_tests_that_need_a_gpu_can_be_imported(path: Path) -> None:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    specification.loader.exec_module(importlib.util.module_from_spec(specification))
