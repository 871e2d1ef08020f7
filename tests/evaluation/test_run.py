"""A real small evaluation of the embedded pair: what is recorded, what is refused, what goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from evaluation_records import lines_of
from evaluation_runs import SIZES, evaluated, pair, task, without_clock
from glimprouter.evaluation import Plan, evaluate, read_records
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.report import write_report
from glimprouter.policies import EntropyThreshold
from glimprouter.tasks import Problem, Split, Task

LABELS = ("small-alone", "large-alone", "random share=0.4", "margin threshold=1.0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return read_records(evaluated(tmp_path_factory.mktemp("evaluation")))


def arm_label(records: Records, rule: str) -> str:
    arm = next(arm for arm in records.arms if arm.rule == rule and arm.wanted is not None)
    return " ".join([rule, *(f"{k}={v!r}" for k, v in arm.parameters.items())])


def test_every_arm_solved_every_problem(whole: Records) -> None:
    labels = [*LABELS, *(arm_label(whole, rule) for rule in ("entropy", "step-entropy"))]
    for label in labels:
        solved = [
            u.problem
            for u in whole.problems
            if (u.split, u.arm, u.batch) == ("report", label, SIZES["batch"])
        ]
        assert sorted(solved) == sorted(p.key for p in task().problems(8, "report"))
        timed = [u for u in whole.problems if (u.arm, u.batch) == (label, 2)]
        assert len(timed) == 2
    assert {s.machine["logical_processors"] > 0 for s in whole.sessions} == {True}


def test_development_problems_are_others(whole: Records) -> None:
    by_split: dict[str, set[str]] = {"development": set(), "report": set()}
    for unit in whole.problems:
        by_split[unit.split].add(unit.problem)
    assert len(by_split["development"]) == 3
    assert not by_split["development"] & by_split["report"]


def test_decisions_follow_from_the_recorded_signals(whole: Records) -> None:
    """And from the thresholds, which some steps exceed and some do not."""
    for rule, field in (("entropy", "entropy"), ("step-entropy", "step_entropy")):
        label = arm_label(whole, rule)
        threshold = float(label.partition("=")[2])
        writers = set()
        for unit, steps in whole.steps.items():
            if unit.arm != label:
                continue
            for step in steps:
                value = getattr(step, field)
                assert value is not None
                assert step.writer == ("large" if value > threshold else "small")
                writers.add(step.writer)
        assert writers == {"small", "large"}


def test_counts_add_up(whole: Records) -> None:
    for unit, record in whole.problems.items():
        steps = whole.steps[unit]
        assert record.steps == len(steps)
        assert record.large_steps == sum(step.writer == "large" for step in steps)
        written = sum(step.tokens for step in steps)
        closing = record.small_tokens + record.large_tokens - written
        assert 0 < closing <= 24, "the closing marker and the answer"
        if unit.arm == "small-alone":
            assert (record.large_tokens, record.large_passes) == (0, 0)
        if unit.arm == "large-alone":
            assert (record.small_tokens, record.small_passes) == (0, 0)
            assert record.glimpsed_steps == 0
        if unit.arm == "margin threshold=1.0":
            assert record.large_steps == record.steps
        assert (record.rewritten_tokens > 0) == (
            unit.arm.startswith("step-entropy") and record.large_steps > 0
        )


def test_answers_and_steps_are_judged_by_the_task(whole: Records) -> None:
    problems = {p.key: p for p in task().problems(8, "report")}
    verdicts = set()
    for unit, record in whole.problems.items():
        if unit.split == "development":
            continue
        problem = problems[unit.problem]
        assert record.correct == (record.answer == problem.answer)
        texts = [step.text.strip() for step in whole.steps[unit]]
        judged = task().check_steps(problem, texts)
        assert [step.correct for step in whole.steps[unit]] == judged
        verdicts |= set(judged)
    assert {True, False} <= verdicts


def test_a_chain_read_again_has_the_entropy_of_its_glimpses(whole: Records) -> None:
    """Each model's own pass over all tokens, against what was computed token by token.

    The policy that reads steps has the same mean entropies from the engine.
    """
    import torch

    from glimprouter.evaluation.reread import _Reading
    from glimprouter.hf.pair.prompts import encode_prompt

    model, problem = pair(), task().problems(8, "report")[0]
    model.policy = EntropyThreshold(1e9)
    try:
        result = model.generate([problem.prompt])[0]
    finally:
        model.policy = None
    prompt = encode_prompt(problem.prompt, model.tokenizer, model.tokenizer).small
    with torch.inference_mode():
        read = _Reading.of(model.small, prompt, result.token_ids)
    start = 0
    for step in result.trace.steps:
        assert step.entropy is not None
        assert float(read.entropies[start]) == pytest.approx(step.entropy, abs=0.05)
        start += step.num_tokens
    alone = next(u for u in whole.steps if u.arm == "small-alone" and u.split == "report")
    for step in whole.steps[alone]:
        assert step.step_perplexity is not None
        assert step.step_perplexity >= 1.0
    agreeing = [
        s.agrees or ""
        for u, own in whole.steps.items()
        if u.arm == "large-alone" and u.batch == 4
        for s in own
    ]
    lengths = [
        s.tokens
        for u, own in whole.steps.items()
        if u.arm == "large-alone" and u.batch == 4
        for s in own
    ]
    assert list(map(len, agreeing)) == lengths
    assert 0.8 < "".join(agreeing).count("1") / sum(lengths) < 1.0


def test_probes_are_of_the_chains_that_are_recorded(whole: Records) -> None:
    assert len(whole.probed) == 2
    assert all(each.reached == each.asked == 2 for each in whole.probed.values())
    chains = {
        u.problem: own
        for u, own in whole.steps.items()
        if (u.arm, u.split, u.batch) == ("small-alone", "report", 4)
    }
    for probe in whole.probes:
        step = chains[probe.problem][probe.step]
        assert step.entropy is not None
        assert probe.entropy == pytest.approx(step.entropy, abs=0.05)
        assert probe.text
        assert probe.step_entropy is not None
    assert len({(p.problem, p.step) for p in whole.probes}) == 4


def test_the_report_of_a_real_run(whole: Records) -> None:
    paths = write_report([whole.path.parent])
    markdown = paths[1].read_text(encoding="utf-8")
    for title in ("small-alone", "large-alone", "entropy, 40 % wanted", "wanted-share, 40 %"):
        assert f"| {title}" in markdown
    assert "sends everything" in markdown
    assert "| entropy, 40 % wanted, minus random |" in markdown
    assert "| entropy, 40 % wanted, minus step-entropy |" in markdown
    assert "## Seconds by batch size" in markdown
    assert paths[0].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_what_is_recorded_is_not_run_again(whole: Records) -> None:
    """The same call only notes that it was made; a wider plan runs what is new."""
    before = lines_of(whole.path)
    evaluated(whole.path.parent)
    assert [line["kind"] for line in lines_of(whole.path)[len(before) :]] == ["session"]
    evaluated(whole.path.parent, policies=["entropy:threshold=0.5"], timing_batches=[])
    added = lines_of(whole.path)[len(before) + 1 :]
    solved = [line for line in added if line["kind"] == "problem"]
    assert {line["arm"] for line in solved} == {"entropy threshold=0.5"}
    assert len(solved) == 8


def test_a_run_cut_anywhere_goes_on_as_if_it_was_not(whole: Records, tmp_path: Path) -> None:
    """The same tokens, decisions and verdicts, whatever was lost of the file."""
    lines = whole.path.read_bytes().splitlines(keepends=True)
    for kept in (len(lines) * 2 // 3,):
        path = tmp_path / str(kept) / "records.jsonl"
        path.parent.mkdir()
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        evaluated(path.parent)
        again = read_records(path)
        wanted = {u for u in whole.problems if not u.arm.startswith(("entropy threshold=0.5", "w"))}
        assert wanted <= set(again.problems)
        turned = 0
        for unit in wanted:
            mine = [without_clock(_plain(s)) for s in again.steps[unit]]
            turned += mine != [without_clock(_plain(s)) for s in whole.steps[unit]]
        assert turned <= len(wanted) // 20, "rounding of other batches may turn a token"


def _plain(step: Any) -> dict[str, Any]:
    return {name: getattr(step, name) for name in ("writer", "text", "tokens", "correct")}


class Overlapping(Task):
    """Its splits are the same problems."""

    name = "overlapping"

    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        return [Problem(f"{i}", f"Reduce {i}", "1") for i in range(count)]

    def is_correct(self, problem: Problem, answer: str) -> bool:
        return False


class Twice(Overlapping):
    name = "twice"

    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        return [Problem("1", f"Reduce {split}", "1")] * count


def test_what_cannot_be_evaluated_says_why(tmp_path: Path) -> None:
    model, small = pair(), Plan(**SIZES)
    with pytest.raises(ValueError, match="3 problems are in both splits, such as 'Reduce 0'"):
        evaluate(model, Overlapping(), tmp_path, small)
    with pytest.raises(ValueError, match="two report problems have the same key"):
        evaluate(model, Twice(), tmp_path, small)
    with pytest.raises(TypeError, match="task must be an object of a class derived from"):
        evaluate(model, "list_reduction", tmp_path, small)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has max_sequences=32, and this plan needs 100"):
        evaluate(model, task(), tmp_path, Plan(**{**SIZES, "batch": 100}))
    config = model.config
    for option in ({"large_tokens": 2}, {"first_steps_large": 1}):
        model.config = config.replace(**option)
        try:
            with pytest.raises(ValueError, match="first_steps_large must be 0 and its large_tok"):
                evaluate(model, task(), tmp_path, small)
        finally:
            model.config = config
    model.policy = EntropyThreshold(1.0)
    try:
        with pytest.raises(ValueError, match="the pair has the policy EntropyThreshold"):
            evaluate(model, task(), tmp_path, small)
    finally:
        model.policy = None
    assert not list(tmp_path.iterdir())


def test_records_of_other_settings_are_refused(whole: Records) -> None:
    before = whole.path.read_bytes()
    with pytest.raises(ValueError, match="is of batch = 4, and this is 2"):
        evaluated(whole.path.parent, batch=2)
    with pytest.raises(ValueError, match=r"is of (task_seed|problems_digest) = "):
        evaluated(whole.path.parent, task_seed=1)
    assert whole.path.read_bytes() == before


def test_thresholds_are_finite_and_recorded(whole: Records) -> None:
    for arm in whole.arms:
        assert all(math.isfinite(value) for value in arm.parameters.values())
        if arm.rule in ("entropy", "step-entropy") and arm.wanted is not None:
            assert arm.development_share is not None
            assert 0 < arm.development_share < 1
            assert arm.rounds == 1
