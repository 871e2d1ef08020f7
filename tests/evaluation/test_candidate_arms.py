"""Arms whose steps are chosen among drafts: records are those of the chains, with all they cost."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

import glimprouter as gr
from evaluation_runs import LIMITS, evaluated, pair, task, without_clock
from glimprouter.chains import (
    ArbitrageOracle,
    CandidateResult,
    CandidateRule,
    SpecCoT,
    write_with_candidates,
)
from glimprouter.demo_pair import large_path, small_path
from glimprouter.evaluation import Plan, evaluate, read_records
from glimprouter.evaluation.prices import Prices
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import ProblemRecord, Record, StepRecord, to_line
from glimprouter.evaluation.report import write_report
from glimprouter.evaluation.solving import following, problem_seed
from glimprouter.hf import RoutedModel
from glimprouter.policies import Glimpse, Policy
from hf_runs import routed

SIZES = {"timing_batches": [], "probe_problems": 0, "problems": 8, "batch": 8}
POLICIES = ["spec-cot:candidates=3", "arbitrage-oracle"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("candidates")
    return read_records(evaluated(folder, policies=POLICIES, **SIZES))


def of(records: Records, rule: str) -> list[tuple[ProblemRecord, list[StepRecord]]]:
    """Report problems of a rule, in the order of the task."""
    units = {u.problem: u for u in records.problems if u.split == "report" and u.arm[:4] == rule}
    order = [units[problem.key] for problem in task().problems(8, "report")]
    return [(records.problems[unit], records.steps[unit]) for unit in order]


def threshold_of(records: Records) -> float:
    (arm,) = (arm for arm in records.arms if arm.rule == "spec-cot")
    return arm.parameters["threshold"]


def test_records_are_those_of_the_chains(records: Records) -> None:
    found = chains(records)
    writers: set[str] = set()
    for (record, steps), one in zip(of(records, "spec"), found, strict=True):
        trace = one.result.trace
        assert record.answer == one.result.answer
        assert [step.text for step in steps] == [step.text for step in trace.steps]
        assert (record.small_passes, record.large_passes) == tuple(one.passes.values())
        assert record.small_unused >= one.dropped_tokens["small"] > 0
        # What the large model read in vain: drafts that were dropped.
        assert record.large_unused == one.dropped_tokens["large"] + one.dropped_read
        assert one.dropped_read == one.dropped_tokens["small"]
        assert record.seconds > sum(step.seconds for step in steps)
        writers |= {step.writer for step in steps}
    assert writers == {"small", "large"}


def chains(records: Records) -> list[CandidateResult]:
    """The same problems by the loop itself."""
    problems = task().problems(8, "report")
    prompts = [problem.prompt for problem in problems]
    rule = SpecCoT(3, threshold_of(records))
    seeds = [problem_seed(0, problem) for problem in problems]
    return write_with_candidates(pair(), prompts, rule, seeds=seeds)


@pytest.mark.parametrize(
    "rule", [SpecCoT(3, -0.05), ArbitrageOracle(lambda *_: 0.0)], ids=["drafts", "both"]
)
def test_passes_are_counted_once_for_all_drafts(rule: CandidateRule) -> None:
    """One problem alone: every forward pass of either model is one of its own."""
    model = pair()
    seen: Counter[str] = Counter()
    hooks = [
        each.register_forward_hook(lambda *_, name=name: seen.update([name]))
        for name, each in (("small", model.small), ("large", model.large))
    ]
    try:
        problem = task().problems(1, "report")[0]
        (one,) = write_with_candidates(model, [problem.prompt], rule, seeds=[5])
    finally:
        for hook in hooks:
            hook.remove()
    assert one.passes == dict(seen)
    assert one.dropped["small"].passes > 0


def reward(question: str | None, previous: Sequence[str], text: str) -> float:
    """The task's checker."""
    (problem,) = (p for p in task().problems(8, "report") if p.prompt == question)
    texts = [one.strip() for one in (*previous, text)]
    return float(task().check_steps(problem, texts)[-1] is not False)


def test_tokens_are_those_that_a_run_with_these_writers_tells(records: Records) -> None:
    """The oracle's drafts have the chain's own random numbers, so such a run writes the same."""
    problems = task().problems(8, "report")
    prompts = [problem.prompt for problem in problems]
    seeds = [problem_seed(0, problem) for problem in problems]
    found = write_with_candidates(pair(), prompts, ArbitrageOracle(reward), seeds=seeds)
    writers = [["small" if c.kept is not None else "large" for c in own.choices] for own in found]

    class Told(Policy):
        def before(self, glimpse: Glimpse) -> gr.ModelName:
            return writers[glimpse.substream][glimpse.step]  # type: ignore[return-value]

    counted: Counter[tuple[int, str]] = Counter()
    with following(pair(), Told()):
        for event in pair().stream(prompts, seeds=seeds):
            counted.update([(event.sequence, event.model)] if event.token_id is not None else [])
    for place, (record, _) in enumerate(of(records, "arbi")):
        assert counted[place, "small"] == record.small_tokens
        assert counted[place, "large"] == record.large_tokens


def test_spec_cot_decides_by_its_score(records: Records) -> None:
    threshold = threshold_of(records)
    for _, steps in of(records, "spec"):
        for step in steps:
            if step.step_score is not None:
                assert (step.writer == "large") == (step.step_score < threshold)
    glimpsed = [step.entropy for _, steps in of(records, "spec") for step in steps]
    assert None not in glimpsed


def test_the_oracle_takes_the_large_models_step_where_only_that_is_right(records: Records) -> None:
    advantages: Counter[float | None] = Counter()
    for record, steps in of(records, "arbi"):
        assert record.large_unused + record.small_unused > 0
        for step in steps:
            advantages[step.step_score] += 1
            assert (step.writer == "large") == (step.step_score == 1.0)
            assert not (step.writer == "large" and step.correct is False)
    assert advantages[1.0] > 0
    assert set(advantages) <= {-1.0, 0.0, 1.0}


def test_a_run_that_was_cut_off_goes_on_with_the_same_draws(
    records: Records, tmp_path: Path
) -> None:
    lines = records.path.read_text().splitlines(keepends=True)
    ends = [place for place, line in enumerate(lines) if '"kind": "problem"' in line]
    assert len(ends) > 12
    shutil.copy(records.path, tmp_path / records.path.name)
    (tmp_path / records.path.name).write_text("".join(lines[: ends[-4] + 1]))
    again = read_records(evaluated(tmp_path, policies=POLICIES, **SIZES))
    for unit, record in records.problems.items():
        assert without_clock(to_line(again.problems[unit])) == without_clock(to_line(record))


def test_what_was_computed_in_vain_is_paid(records: Records) -> None:
    record = of(records, "arbi")[0][0]
    small = record.small_tokens + record.rewritten_tokens + record.small_unused
    assert Prices(1.0, 0.0, "token").of(record) == small
    assert Prices(0.0, 1.0, "token").of(record) == record.large_tokens + record.large_unused


def test_they_are_reported(records: Records, tmp_path: Path) -> None:
    text = write_report([records.path.parent], tmp_path)[1].read_text()
    assert "| spec-cot candidates=3, 40 % wanted |" in text
    assert "| arbitrage-oracle |" in text


def refused(model: RoutedModel, policy: str, directory: Path) -> str:
    plan = {**SIZES, "policies": [policy], "batch": 2}
    with pytest.raises(ValueError, match=r"spec-cot|this plan needs") as error:
        evaluate(model, task(), directory, Plan(**plan))
    assert not directory.exists()
    return str(error.value)


def test_what_a_pair_cannot_do_is_said_before_anything_runs(tmp_path: Path) -> None:
    own = {"drafts": 0, "max_sequences": 16}
    greedy = RoutedModel.from_pretrained(
        small_path(), large_path(), config=gr.RouterConfig(**LIMITS, temperature=0.0), **own
    )
    where = tmp_path / "never"
    assert "policy spec-cot: 4 drafts at temperature 0" in refused(greedy, "spec-cot", where)
    message = refused(greedy, "spec-cot:candidates=9", where)
    assert "max_sequences=16, and this plan needs 20" in message
    two, _ = routed("two tokenizers", max_sequences=16)
    assert "the tokenizers of this pair differ" in refused(two, "spec-cot", where)
    assert "spec-cot has no parameter 'large_tokens'" in refused(
        greedy, "spec-cot:large_tokens=1", where
    )


def test_a_problem_is_recorded_when_its_chain_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is interrupted later, in the same batch, does not take it along."""
    from glimprouter.evaluation import record_file

    own = record_file.RecordFile.append
    chosen: list[str] = []

    def stop(self: record_file.RecordFile, group: Iterable[Record]) -> None:
        kept = list(group)
        own(self, kept)
        last = kept[-1]
        if isinstance(last, ProblemRecord) and last.arm.startswith("arbitrage"):
            chosen.append(last.problem)
            if len(chosen) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(record_file.RecordFile, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, policies=POLICIES[1:], **SIZES)
    monkeypatch.undo()
    found = read_records(tmp_path)
    assert [u.problem for u in found.problems if u.arm.startswith("arbitrage")] == chosen
    evaluated(tmp_path, policies=POLICIES[1:], **SIZES)
    again = [u.problem for u in read_records(tmp_path).problems if u.arm.startswith("arbitrage")]
    assert again[:3] == chosen
    assert len(again) == len(set(again)) == 8
