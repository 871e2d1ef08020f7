"""The file of records: what a kill leaves, what is refused, and that nothing is lost by it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation_records import changed, identity, lines_of, plant, problem, session, step, unit_of
from glimprouter.evaluation import read_records
from glimprouter.evaluation.record_file import FILE_NAME, RecordFile
from glimprouter.evaluation.records import ArmRecord


def two_problems(directory: Path) -> Path:
    """A file with two solved problems of three steps each."""
    with RecordFile(directory, identity()) as file:
        file.append([session()])
        file.append([ArmRecord("random", {"share": 0.5}, 0.5)])
        for key in range(2):
            unit = unit_of("random share=0.5", key)
            steps = [step(unit, index) for index in range(3)]
            file.append([*steps, problem(unit, steps)])
    return directory / FILE_NAME


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = two_problems(tmp_path)
    for where in (path, tmp_path):
        records = read_records(where)
        assert records.identity == identity()
        assert [unit.problem for unit in records.problems] == ["p00", "p01"]
        assert [[s.index for s in own] for own in records.steps.values()] == [[0, 1, 2]] * 2
        assert (records.cut, records.size) == (0, path.stat().st_size)
    assert [line["kind"] for line in lines_of(path)[1:]] == (
        ["session", "arm", *(["step"] * 3 + ["problem"]) * 2]
    )


@pytest.mark.parametrize("lost", [1, 40, 700])
def test_an_unfinished_record_is_cut_and_the_rest_goes_on(tmp_path: Path, lost: int) -> None:
    """Wherever a kill struck: in the last problem's line, or in a step before it."""
    path = two_problems(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    records = read_records(path)
    assert [unit.problem for unit in records.problems] == ["p00"]
    assert records.cut > 0
    assert path.read_bytes() == whole[:-lost], "reading changes nothing"
    with RecordFile(tmp_path, identity()) as file:
        assert [unit.problem for unit in file.records.problems] == ["p00"]
        unit = unit_of("random share=0.5", 1)
        steps = [step(unit, index) for index in range(3)]
        file.append([*steps, problem(unit, steps)])
    assert path.read_bytes() == whole


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = two_problems(tmp_path)
    whole = path.read_bytes()
    with RecordFile(tmp_path, identity()) as file:
        unit = unit_of("random share=0.5", 2)
        wrong = dataclasses.replace(problem(unit, []), small_unused=-1)
        with pytest.raises(ValueError, match="small_unused"):
            file.append([wrong])
        assert len(file.records.problems) == 2
    assert path.read_bytes() == whole


def test_steps_without_their_problem_are_cut(tmp_path: Path) -> None:
    path = two_problems(tmp_path)
    changed(path, lambda lines: lines[:-1])
    with RecordFile(tmp_path, identity()) as file:
        assert len(file.records.problems) == 1
    assert [line["kind"] for line in lines_of(path)][-1] == "problem"


def _line(at: int, text: str) -> Any:
    return lambda lines: [*lines[: at - 1], text + "\n", *lines[at:]]


def _field(at: int, **values: Any) -> Any:
    def change(lines: list[str]) -> list[str]:
        return [
            *lines[: at - 1],
            json.dumps({**json.loads(lines[at - 1]), **values}) + "\n",
            *lines[at:],
        ]

    return change


DAMAGED = {
    "no JSON": (_line(5, '{"kind": "st'), "line 5 is damaged: it is no JSON"),
    "no object": (_line(5, "[]"), "line 5 is damaged: it is no JSON object"),
    "unknown kind": (_field(5, kind="dream"), "line 5 has the unknown kind 'dream'"),
    "unknown field": (_field(5, colour=1), "line 5: a step has no field 'colour'"),
    "wrong type": (_field(5, tokens="5"), "line 5, 'tokens' must be a whole number"),
    "no number": (_field(5, entropy="NaN"), "line 5, 'entropy' must be a finite number or null"),
    "missing field": (_line(4, '{"kind": "step", "split": "report"}'), "line 4: a step lacks"),
    "line lost": (lambda lines: [*lines[:4], *lines[5:]], "line 6 does not fit the lines before"),
    "twice": (lambda lines: [*lines, *lines[-4:]], "line 15 does not fit"),
    "other file": (_line(1, '{"kind": "glimprouter.trace"}'), "holds no records of an evaluation"),
    "other version": (_field(1, schema_version=99), "has schema version 99; this .* reads 2"),
    "no identity": (_field(1, identity=3), "line 1: 'identity' must be an object"),
    "empty": (lambda lines: [], "is empty: no evaluation was written to it"),
    "blank": (lambda lines: ["\n", " \n"], "is empty"),
    "half a header": (lambda lines: [lines[0][:30]], "is cut short in its first line"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named_and_left_alone(tmp_path: Path, change: Any, message: str) -> None:
    path = two_problems(tmp_path)
    changed(path, change)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        read_records(path)
    if before:
        with pytest.raises(ValueError, match=message):
            RecordFile(tmp_path, identity())
    assert path.read_bytes() == before


OTHERS = {
    "pair": ({"pair": f"{'a' * 64}:{'c' * 64}"}, r"another pair \(the large model differs\)"),
    "both models": ({"pair": "c:d"}, r"another pair \(the small and the large model differs\)"),
    "task": ({"task": "other"}, "is of task = 'planted', and this is 'other'"),
    "problems": ({"problems_digest": "1"}, "is of problems_digest = '0'"),
    "temperature": (
        {"config": {**identity()["config"], "temperature": 0.0}},
        r"is of temperature = 0\.6, and this is 0\.0",
    ),
    "batch": ({"plan": {**identity()["plan"], "batch": 4}}, "is of batch = 8, and this is 4"),
    "drafts": ({"drafts": 4}, "is of drafts = 0, and this is 4"),
    "unknown to the file": ({"colour": "red"}, "is of colour = None, and this is 'red'"),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_records_of_another_pair_or_settings_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = two_problems(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        RecordFile(tmp_path, identity(**changes))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    """The second is refused, and the first goes on."""
    code = (
        "import json, sys; from pathlib import Path;"
        "from glimprouter.evaluation.record_file import RecordFile;"
        "RecordFile(Path(sys.argv[1]), json.loads(sys.argv[2]))"
    )
    with RecordFile(tmp_path, identity()) as file:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), json.dumps(identity())],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "RuntimeError: another process writes to" in done.stderr
        file.append([session()])
    assert len(read_records(tmp_path).sessions) == 1


def test_planted_records_are_whole(tmp_path: Path) -> None:
    records = read_records(plant(tmp_path))
    assert len(records.problems) == 6 * 2 * 40
    assert len(records.probes) == 80
