"""Agreement of both models within steps: against plain passes, and counts by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from evaluation_runs import evaluated, pair, task
from glimprouter.evaluation import read_records
from glimprouter.evaluation.agreement import (
    agreement_by_position,
    agreement_of,
    hard_steps,
    read_steps,
)
from glimprouter.evaluation.arms import arms_of
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.report import write_report
from glimprouter.hf.pair.prompts import encode_prompt


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    policies = ["entropy", "random", "entropy:large_tokens=2", "spec-reason:threshold=5"]
    policies += ["spec-reason:threshold=5,expected=1"]
    folder = tmp_path_factory.mktemp("agreement")
    return read_records(evaluated(folder, policies=policies, timing_batches=[], probe_problems=0))


def test_steps_of_the_large_model_against_plain_passes(records: Records) -> None:
    """Of its chain the small model's own pass gives H_init, and both models the likeliest ids."""
    model = pair()
    problem = task().problems(8, "report")[0]
    own = [step for step in read_steps(records) if step.problem == problem.key]
    text = "".join(step.text for step in own)
    ids = encode_prompt(problem.prompt, model.tokenizer, model.tokenizer).small
    start = len(ids)
    ids = [*ids, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        small, large = (
            m(input_ids=torch.tensor([ids])).logits[0].double() for m in (model.small, model.large)
        )
    agrees = (small.argmax(-1) == large.argmax(-1))[start - 1 : -1].tolist()
    assert "".join(step.agrees or "" for step in own) == "".join("01"[each] for each in agrees)
    entropies = -(small.softmax(-1) * small.log_softmax(-1)).sum(-1)
    for step in own:
        assert step.entropy == pytest.approx(float(entropies[start - 1]), abs=1e-3)
        start += step.tokens
    assert start == len(ids)


def test_hard_steps_are_those_above_the_threshold(records: Records) -> None:
    every = read_steps(records)
    assert {step.writer for step in every} == {"large"}
    (arm,) = (a for a in records.arms if a.rule == "entropy" and set(a.parameters) == {"threshold"})
    assert arm.wanted is not None
    hard = hard_steps(records, arm.wanted)
    assert hard == [s for s in every if (s.entropy or 0.0) > arm.parameters["threshold"]]
    assert 0 < len(hard) < len(every)
    assert hard_steps(records, 0.123) is None
    config = {**records.identity["config"], "entropy_top_k": 20}
    other = dataclasses.replace(records, identity={**records.identity, "config": config})
    assert hard_steps(other, arm.wanted) is None, "its threshold is of another number"


def test_shares_by_hand(records: Records) -> None:
    base = read_steps(records)[0]
    rows = [("a", "1101"), ("a", "0111"), ("b", "1"), ("b", "11"), ("c", "01")]
    steps = [dataclasses.replace(base, problem=key, agrees=own) for key, own in rows]
    found = agreement_of(steps)
    assert found.steps == 5
    assert found.first.estimate == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.later.estimate == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert found.whole == pytest.approx(4 / 5)
    places = agreement_by_position(steps, 2)
    assert [place for place, _ in places] == [0, 1, 2, 3]
    assert places[2][1].estimate == pytest.approx(1 / 2)
    assert [place for place, _ in agreement_by_position(steps, 3)] == [0, 1]


def test_two_forms_of_one_rule_are_two_kinds(records: Records, tmp_path: Path) -> None:
    kinds = [arm.kind for arm in arms_of(records)[0]]
    assert len(kinds) == len(set(kinds)), "one share was wanted"
    assert {"spec-reason", "spec-reason expected=1", "entropy large_tokens=2"} <= set(kinds)
    write_report([records.path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "init above its threshold for 40 %" in text
    assert "spec-reason expected=1" in text
