"""Arms that differ in more than their policy: first tokens only, top-k entropy, drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation_runs import evaluated, pair
from glimprouter.evaluation import read_records
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import ProblemRecord, StepRecord
from glimprouter.evaluation.report import write_report

POLICIES = [
    "entropy",
    "entropy:large_tokens=1",
    "entropy:entropy_top_k=2",
    "entropy:drafts=4",
    "large-alone:drafts=4",
    "step-entropy:large_tokens=2",
]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("settings")
    return read_records(
        evaluated(folder, policies=POLICIES, timing_batches=[], probe_problems=0, problems=6)
    )


def solved(records: Records, start: str, *, split: str = "report") -> dict[str, ProblemRecord]:
    return {
        unit.problem: record
        for unit, record in records.problems.items()
        if unit.split == split and unit.arm.startswith(start)
    }


def steps_of(records: Records, start: str) -> list[StepRecord]:
    return [
        step
        for unit, steps in records.steps.items()
        if unit.split == "report" and unit.arm.startswith(start)
        for step in steps
    ]


def test_a_share_sets_the_threshold_of_each_setting(records: Records) -> None:
    kinds = [sorted(arm.parameters) for arm in records.arms if arm.wanted is not None]
    assert kinds == [
        ["threshold"],
        ["large_tokens", "threshold"],
        ["entropy_top_k", "threshold"],
        ["drafts", "threshold"],
        ["large_tokens", "threshold"],
    ]


@pytest.mark.parametrize(("rule", "most"), [("entropy", 1), ("step-entropy", 2)])
def test_the_large_model_writes_first_tokens_only(records: Records, rule: str, most: int) -> None:
    name = f"{rule} large_tokens={float(most)}"
    large = [step for step in steps_of(records, name) if step.writer == "large"]
    assert large
    assert any(step.tokens > most for step in large), "or nothing is told apart"
    answers = max(record.large_tokens for record in solved(records, "large-alone").values())
    for record in solved(records, name).values():
        written = record.large_tokens - most * record.large_steps
        assert written <= 16, "the answer and the closing marker"
        assert record.large_tokens < answers


def test_entropies_of_the_top_are_smaller_and_set_the_threshold(records: Records) -> None:
    tops = [step.entropy for step in steps_of(records, "entropy entropy_top_k=2.0")]
    assert tops
    assert all(value is not None and value <= 0.6932 for value in tops), "ln 2 at most"
    (arm,) = (a for a in records.arms if "entropy_top_k" in a.parameters)
    assert arm.parameters["threshold"] < 0.6932
    assert solved(records, "small-alone entropy_top_k=2.0", split="development")


def test_drafts_change_passes_and_no_text(records: Records) -> None:
    labels = sorted({unit.arm for unit in records.problems if unit.split == "report"})
    threshold = next(label for label in labels if label.startswith("entropy threshold"))
    for plain, drafted in (("large-alone", "large-alone drafts"), (threshold, "entropy drafts")):
        without = {r.problem: r for u, r in records.problems.items() if u.arm == plain}
        for key, record in solved(records, drafted).items():
            other = without[key]
            assert (record.answer, record.steps) == (other.answer, other.steps)
            assert record.large_passes < other.large_passes
    assert pair().drafting is None, "as it was before"


def test_the_report_compares_an_arm_with_itself_without_the_setting(
    records: Records, tmp_path: Path
) -> None:
    _, markdown = write_report([records.path.parent], tmp_path)
    text = markdown.read_text().replace("\\_", "_")
    assert "entropy large_tokens=1, 40 % wanted, minus entropy" in text
    assert "large-alone drafts=4, minus large-alone" in text
    assert "entropy, 40 % wanted, minus entropy" not in text
