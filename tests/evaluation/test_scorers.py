"""Rules that need a scorer, which an evaluation makes: the checker as reward, a fitted router."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation_runs import SIZES, evaluated, pair, task
from glimprouter.evaluation import Plan, evaluate, read_records
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import StepRecord
from glimprouter.evaluation.report import write_report
from glimprouter.tasks import Problem, Split, Task

ONLY = {"timing_batches": [], "probe_problems": 0}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    policies = ["reward", "learned", "mixture"]
    folder = tmp_path_factory.mktemp("scorers")
    sizes = {"problems": 16, "development_problems": 12}
    return read_records(evaluated(folder, policies=policies, **sizes, **ONLY))


def steps_of(records: Records, rule: str) -> list[StepRecord]:
    units = [u for u in records.steps if u.split == "report" and u.arm.startswith(rule)]
    return [step for unit in units for step in records.steps[unit]]


def test_the_reward_has_each_wrong_step_rewritten(records: Records) -> None:
    steps = steps_of(records, "reward")
    large = [step for step in steps if step.writer == "large"]
    small = [step for step in steps if step.writer == "small"]
    assert large
    assert {step.step_score for step in large} == {0.0}
    assert {step.step_score for step in small} == {1.0}
    assert all(step.correct is not False for step in small)


def test_the_learned_router_decides_by_its_score(records: Records) -> None:
    (arm,) = (arm for arm in records.arms if arm.rule == "learned")
    steps = steps_of(records, "learned")
    for step in steps:
        assert step.step_score is not None
        assert 0.0 <= step.step_score <= 1.0
        exceeds = step.step_score > arm.parameters["threshold"]
        assert step.writer == ("large" if exceeds else "small")
    assert {step.writer for step in steps} == {"small", "large"}


def test_the_learned_router_knows_more_than_chance(records: Records) -> None:
    """Its scores of steps that the small model keeps or not, against the checker."""
    from sklearn.metrics import roc_auc_score

    steps = [step for step in steps_of(records, "learned") if step.writer == "small"]
    unrouted = [
        step
        for unit, own in records.steps.items()
        if unit.split == "development" and unit.arm == "learned threshold=1.0"
        for step in own
    ]
    assert all(step.writer == "small" for step in unrouted)
    assert steps
    score = roc_auc_score([not s.correct for s in unrouted], [s.step_score for s in unrouted])
    assert score > 0.75


def test_all_of_them_are_reported(records: Records, tmp_path: Path) -> None:
    text = write_report([records.path.parent], tmp_path)[1].read_text()
    for title in ("| reward |", "| learned, 40 % wanted |", "| mixture |"):
        assert title in text


class Unchecked(Task):
    name = "unchecked"

    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        return task().problems(count, split, seed)

    def is_correct(self, problem: Problem, answer: str) -> bool:
        return task().is_correct(problem, answer)


class AlwaysRight(Unchecked):
    name = "always-right"
    checks_steps = True

    def check_steps(self, problem: Problem, steps: list[str]) -> list[bool | None]:  # type: ignore[override]
        return [True] * len(steps)


@pytest.mark.parametrize("name", ["reward", "learned"])
def test_they_need_a_checker_of_steps(name: str, tmp_path: Path) -> None:
    plan = Plan(**{**SIZES, **ONLY, "policies": [name]})
    with pytest.raises(ValueError, match="task unchecked has no checker of steps, which"):
        evaluate(pair(), Unchecked(), tmp_path, plan)


def test_nothing_is_learnt_where_nothing_is_wrong(tmp_path: Path) -> None:
    plan = Plan(**{**SIZES, **ONLY, "policies": ["learned"]})
    with pytest.raises(ValueError, match="are all right, or all wrong: no router can be learnt"):
        evaluate(pair(), AlwaysRight(), tmp_path, plan)
