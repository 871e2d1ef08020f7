"""What the report says of causes: counted again, from the lines of the records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from benchmark_scripts import script
from evaluation_records import lines_of
from evaluation_runs import evaluated
from glimprouter.evaluation.arms import arms_of
from glimprouter.evaluation.document import Table
from glimprouter.evaluation.formats import points_interval
from glimprouter.evaluation.record_file import read_records
from glimprouter.evaluation.records import StepRecord
from glimprouter.evaluation.statistics import Interval


@pytest.fixture(scope="module")
def routing() -> Any:
    """The modules of the report."""
    return {name: script("routing", name) for name in ("caught", "causes", "jobs")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("causes")
    return evaluated(
        made, policies=["random", "entropy", "step-entropy"], shares=[0.25], timing_batches=[]
    )


def steps_of(folder: Path) -> tuple[list[dict[str, Any]], float]:
    """Steps of the large model's chains that both models read, and the threshold."""
    lines = lines_of(folder)
    (threshold,) = (
        line["parameters"]["threshold"]
        for line in lines
        if line["kind"] == "arm" and line["rule"] == "entropy"
    )
    steps = [
        line
        for line in lines
        if line["kind"] == "step" and (line["split"], line["arm"]) == ("report", "large-alone")
    ]
    return [step for step in steps if step["agrees"] is not None and step["batch"] == 4], threshold


def step_of(problem: str, agrees: str) -> StepRecord:
    return StepRecord(
        *("report", "large-alone", 0, 1, problem, 0, "large"),
        *(1.0, None, None, None, "1", 1, 0.0, "delimiter", None, None, None, None),
        agrees=agrees,
    )


def tables(blocks: Any) -> list[Table]:
    return [block for block in blocks if isinstance(block, Table)]


def job_of(routing: Any, name: str) -> Any:
    return routing["jobs"].Job(name, "list_reduction", "list_reduction", "small", "large")


def test_what_is_caught_is_counted(routing: Any, folder: Path) -> None:
    records = {name: read_records(folder) for name in "abcd"}
    arms = {name: arms_of(each)[0] for name, each in records.items()}
    blocks = list(routing["caught"].caught([job_of(routing, n) for n in "abcd"], records, arms))
    whole, by_opener = tables(blocks)
    assert len(whole.rows) == 4
    assert len({tuple(row[1:]) for row in whole.rows}) == 1
    steps, threshold = steps_of(folder)
    differ = [step for step in steps if "0" in step["agrees"]]
    first = [step for step in steps if step["agrees"][0] == "0"]
    assert first, "or this pair tells nothing"

    def sent(some: list[dict[str, Any]]) -> float:
        return sum(step["entropy"] > threshold for step in some) / len(some)

    name, count, differing, at_first, auroc, every, *sent_differing, gain = whole.rows[0]
    sent_first, sent_later, more = sent_differing
    assert name == "a"
    assert count == str(len(steps))
    assert differing == f"{100 * len(differ) / len(steps):.1f}"
    assert at_first == f"{100 * len(first) / len(differ):.1f}"
    entropies = [step["entropy"] for step in steps]
    area = roc_auc_score([step in first for step in steps], entropies)
    assert auroc.startswith(f"{area:.3f}")
    assert every == f"{100 * sent(steps):.1f}"
    assert sent_first.startswith(f"{100 * sent(first):.1f}")
    later = [step for step in differ if step not in first]
    assert sent_later.startswith(f"{100 * sent(later):.1f}" if later else "-")
    assert more.startswith(f"{100 * (sent(differ) - sent(steps)):+.1f}")
    test = routing["causes"].minus(arms["a"], "random")
    assert gain == points_interval(test.difference)
    openers = {row[1]: row for row in by_opener.rows if row[0] == "a"}
    assert {"a number", "Left"} <= set(openers)
    numbers = [step for step in steps if step["text"].lstrip()[0].isdigit()]
    assert openers["a number"][2] == str(len(numbers))
    assert "nan" not in str(blocks)


def test_ranks_over_all_and_within_a_family(routing: Any) -> None:
    """By hand: what is caught grows with what is gained in all but one of five."""
    caught, interval = routing["caught"], Interval
    steps = [step_of(f"p{n}", agrees) for n in range(10) for agrees in "01"]
    known = {str(n): caught.Caught(steps, steps[: 2 * n : 2]) for n in (1, 2, 3, 4, 5)}
    gains = {str(n): interval(gain, 0, 0) for n, gain in zip("12345", (1, 2, 4, 3, 5), strict=True)}
    jobs = [job_of(routing, name) for name in known]
    assert caught._together(jobs, known, gains).endswith("all 0.90 (5); list_reduction 0.90 (5).")
    advantage = known["3"].advantage
    assert advantage.estimate == pytest.approx(0.3 - 0.15)
    assert 0 <= advantage.low < 0.15 < advantage.high < 0.4
    flat = dict.fromkeys(known, interval(1, 0, 0))
    few = dict(list(known.items())[:4])
    unsure = known | {"5": caught.Caught(steps[:14], steps[:2])}  # seven problems
    for evaluations, gained in ((known, flat), (few, gains), (unsure, gains)):
        text = caught._together(jobs[: len(evaluations)], evaluations, gained)
        assert text.startswith("No rank correlation")


def test_nothing_that_differs_is_a_dash(routing: Any, folder: Path) -> None:
    caught = routing["caught"]
    alike = caught.Caught([step_of(f"p{n}", "11") for n in range(9)], [])
    row = caught._row("a", alike, Interval(0.1, 0.0, 0.2))
    assert row[:7] == ["a", "9", "0.0", "-", "-", "0.0", "-"]
    assert row[-2] == "-"
    records = read_records(folder)
    records.steps.clear()
    assert caught.caught_of(records) is None


def test_p_values_are_adjusted_over_all_tables(routing: Any, folder: Path) -> None:
    records = {name: read_records(folder) for name in "ab"}
    arms = {name: arms_of(each)[0] for name, each in records.items()}
    causes = routing["causes"]
    blocks = list(causes.causes([job_of(routing, n) for n in "ab"], records, arms))
    (table,) = tables(blocks)
    place = causes.COLUMNS.index("p, adjusted")
    test = causes.minus(arms["a"], "random")
    assert [row[place] for row in table.rows] == [f"{test.p_value:.3f}"] * 2  # equal ones stay
    adjusted = causes._adjusted([None, test, test._replace(p_value=0.9)])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([min(2 * test.p_value, 0.9), 0.9])
