"""Calibration and evaluation on engines that play vLLM, against the same of RoutedModel."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import calibration_runs
from evaluation_runs import LIMITS, task, without_clock
from glimprouter import RouterConfig
from glimprouter.calibration import calibrate
from glimprouter.evaluation import Plan, evaluate, read_records
from glimprouter.evaluation.on_engines import engines_plan
from glimprouter.evaluation.report import write_report
from glimprouter.hf import RoutedModel
from glimprouter.policies import EntropyThreshold, RandomShare
from glimprouter.vllm import EngineLost, EngineRefused, RoutedEngines
from hf_pairs import trained_pair
from played_engines import PlayedEngine

GREEDY = RouterConfig(**LIMITS, temperature=0.0)
SIZES: dict[str, Any] = {
    "problems": 4,
    "development_problems": 3,
    "policies": ["random", "entropy", "entropy:threshold=0.3,entropy_top_k=5,large_tokens=2"],
    "shares": [0.4],
    "seeds": 1,
    "batch": 4,
    "rounds": 2,
    "probe_problems": 0,
}
ASKED = {"small_passes", "large_passes", "step_entropy", "step_perplexity", "agrees"}
ASKED |= {"max_prob", "margin", "varentropy"}


def played(config: RouterConfig = GREEDY, **options: Any) -> RoutedEngines:
    model = trained_pair()
    engines = [PlayedEngine(each, model.tokenizer) for each in (model.small, model.large)]
    return RoutedEngines(*engines, model.tokenizer, config, **{"max_sequences": 32, **options})


def lines(path: Path) -> list[dict[str, Any]]:
    """Steps, problems and arms, but for what engines do not say and what a clock says."""
    found = [
        json.loads(_rounded(line)) for line in path.read_text(encoding="utf-8").splitlines()[1:]
    ]
    kept = [without_clock(line) for line in found if line["kind"] != "session"]
    kept = [{k: v for k, v in line.items() if k not in ASKED} for line in kept]
    for line in kept:
        if line["kind"] == "step" and line["arm"] == "large-alone":
            del line["entropy"]  # read again, where both models are at hand; nothing was glimpsed
    return sorted(kept, key=lambda line: json.dumps(line, sort_keys=True))


def _rounded(line: str) -> str:
    """Thresholds are names of arms, too."""
    return re.sub(r"\d+\.\d{4,}", lambda found: f"{float(found[0]):.3f}", line)


def test_a_calibration_is_that_of_a_routed_model() -> None:
    prompts = calibration_runs.PROMPTS[:12]
    want = calibrate(calibration_runs.routed(), prompts, 0.3, seed=2, max_rounds=2, tolerance=0.1)
    client = played(calibration_runs.CONFIG)
    stages: list[str] = []
    got = calibrate(
        client,
        prompts,
        0.3,
        seed=2,
        max_rounds=2,
        tolerance=0.1,
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert got.threshold == pytest.approx(want.threshold, abs=2e-5)
    changes = {"threshold": want.threshold, "pair": want.pair}
    assert dataclasses.replace(got, **changes) == want
    assert 0.0 < got.measured_share < 1.0
    assert stages[0] == "unrouted"
    assert stages[-1] == "verification"
    assert got.on_engines
    assert not want.on_engines
    got.check_pair(client)
    with pytest.raises(ValueError, match="in one process, and this one is on engines"):
        want.check_pair(client)
    with pytest.raises(ValueError, match="on engines, and this pair is not"):
        got.check_pair(calibration_runs.routed())
    client.close()
    other = played()
    other._engines["large"]._engine.name = "another"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the large model differs"):
        got.check_pair(other)
    other.close()


def test_what_a_calibration_refuses() -> None:
    client = played(calibration_runs.CONFIG, policy=EntropyThreshold(0.5))
    with pytest.raises(ValueError, match="has the policy EntropyThreshold"):
        calibrate(client, calibration_runs.PROMPTS)
    client.policy = None
    client._engines["small"]._engine._context = 64  # type: ignore[attr-defined]
    long = "7" * 80
    with pytest.raises(ValueError, match="context"):
        calibrate(client, [*calibration_runs.PROMPTS[:4], long])
    assert len(client._engines["small"]._engine.requests) == 1  # type: ignore[attr-defined]
    client.close()


def test_a_calibration_whose_engine_stays_away() -> None:
    client = played(calibration_runs.CONFIG, patience=0.0)
    client.check()
    engine: Any = client._engines["small"]._engine

    def fault(tokens: int) -> None:
        if tokens > 100:
            raise EngineLost("connection refused")

    engine.fault = fault
    with pytest.raises(RuntimeError, match=r"calibration, unrouted: .*small engine.*refused"):
        calibrate(client, calibration_runs.PROMPTS[:6])
    asked = len(engine.requests)
    engine.fault = None
    client.generate(calibration_runs.PROMPTS[:1], route="small", answer_model="small")
    assert len(engine.requests) == asked + 3  # a greeting and two turns: the other run has ended
    client.close()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the pair in this process, and on engines."""
    folder = tmp_path_factory.mktemp("evaluation")
    model = trained_pair()
    own = RoutedModel(model.small, model.large, model.tokenizer, GREEDY, drafts=0, max_sequences=32)
    client = played()
    paths = [
        evaluate(each, task(), folder / name, Plan(**SIZES))
        for name, each in (("own", own), ("engines", client))
    ]
    assert client.policy is None
    client.close()
    return paths[0], paths[1]


def test_an_evaluation_is_that_of_a_routed_model(records: tuple[Path, Path]) -> None:
    want, got = map(lines, records)
    assert got == want
    arms = {line["rule"] for line in got if line["kind"] == "arm"}
    assert arms == {"small-alone", "large-alone", "random", "entropy"}
    shares = {
        line["arm"]: line["large_steps"] / line["glimpsed_steps"]
        for line in got
        if line["kind"] == "problem" and line["glimpsed_steps"]
    }
    assert 0.0 < shares["random share=0.4"] < 1.0


def test_its_report(records: tuple[Path, Path], tmp_path: Path) -> None:
    page, text = write_report([records[1].parent], tmp_path)
    told = text.read_text(encoding="utf-8")
    assert "not shown by engines" in told
    assert "small engine: played, vLLM 0.32.0" in told
    assert "engines do not show their weights" in told
    assert "which do not say what they find most likely" in told
    assert "H\\_init of" in told
    assert page.stat().st_size > 10_000


def test_it_goes_on_where_an_engine_stayed_away(tmp_path: Path) -> None:
    """Nothing is counted as wrong, and what was recorded is not run again."""
    plan = Plan(**{**SIZES, "policies": ["random:share=0.5"], "batch": 2})
    whole = evaluate(played(), task(), tmp_path / "whole", plan)
    client = played(patience=0.0)
    client.check()
    engine: Any = client._engines["large"]._engine

    def fault(tokens: int) -> None:
        if tokens > 500:
            raise EngineLost("connection refused")

    engine.fault = fault
    with pytest.raises(RuntimeError, match=r"the large engine.*nothing that is recorded is lost"):
        evaluate(client, task(), tmp_path / "away", plan)
    before = read_records(tmp_path / "away")
    assert before.problems
    assert all(record.error is None for record in before.problems.values())
    engine.fault = None
    path = evaluate(client, task(), tmp_path / "away", plan)
    assert lines(path) == lines(whole)
    client.close()


def test_it_ends_where_a_gate_disagrees(tmp_path: Path) -> None:
    """What was written then is not what routing gives: it counts neither as right nor as wrong."""
    plan = Plan(**{**SIZES, "policies": ["random:share=0.5"], "batch": 2})
    client = played()
    client.check()
    boundaries: Any = client._engines["small"]._engine._boundaries  # type: ignore[attr-defined]
    row = boundaries.row
    boundaries.row = lambda options: row(dataclasses.replace(options, decides=False))
    with pytest.raises(RuntimeError, match=r"small-alone: .*a step starts.*nothing that is"):
        evaluate(client, task(), tmp_path / "out", plan)
    assert not read_records(tmp_path / "out").problems
    client.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ["margin"]}, "policy margin is not for engines"),
        ({"policies": ["varentropy:threshold=1"]}, "policy varentropy threshold=1.0 is not for"),
        ({"policies": ["step-entropy"]}, "policy step-entropy is not for engines"),
        ({"policies": ["wanted-share"]}, "policies of engines are random, entropy"),
        ({"policies": ["spec-reason"]}, "policy spec-reason is not for engines"),
        ({"policies": ["entropy:threshold=1,drafts=2"]}, "do not draft"),
        ({"policies": ["large-alone:drafts=2"]}, "do not draft"),
        ({"probe_problems": 2}, "probe_problems is 2, and must be 0 on engines"),
    ],
    ids=str,
)
def test_what_engines_cannot_do_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    client = played()
    with pytest.raises(ValueError, match=message):
        evaluate(client, task(), tmp_path / "out", engines_plan(**changes))
    assert not (tmp_path / "out").exists()
    assert not client._engines["small"]._engine.requests  # type: ignore[attr-defined]


def test_engines_that_cannot_serve_leave_no_records(tmp_path: Path) -> None:
    client = played()
    client._engines["large"]._engine.gate = False  # type: ignore[attr-defined]
    with pytest.raises(EngineRefused, match="the large engine"):
        evaluate(client, task(), tmp_path / "out", engines_plan())
    client = played(policy=RandomShare(0.5))
    with pytest.raises(ValueError, match="has the policy RandomShare"):
        evaluate(client, task(), tmp_path / "out", engines_plan())
    assert not (tmp_path / "out").exists()


def test_another_server_is_another_pair(records: tuple[Path, Path]) -> None:
    client = played()
    client._engines["small"]._engine.name = "another"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"another pair \(the small model differs"):
        evaluate(client, task(), records[1].parent, Plan(**SIZES))
    client.close()
