"""Loaders of public data sets on records of their formats, made by hand."""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glimprouter.tasks import GpqaDiamond, Limits, LiveCodeBench, Problem, Task, task_of

MATH = [
    {
        "problem": "What is $1+1$?",
        "solution": "It is $\\boxed{2}$.",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
        "unique_id": f"test/algebra/{i}.json",
    }
    for i in range(12)
]
MATH = [{**record, "problem": f"What is $1+{i}$?"} for i, record in enumerate(MATH)]
GPQA = [
    {
        "Record ID": f"rec{i}",
        "Question": f"Which of these is number {i}?",
        "Correct Answer": f"right {i}",
        "Incorrect Answer 1": "wrong one",
        "Incorrect Answer 2": "wrong two",
        "Incorrect Answer 3": "wrong three",
        "Subdomain": "Physics (general)",
    }
    for i in range(30)
]


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def every_problem(task: Task) -> list[Problem]:
    found: list[Problem] = []
    for split in ("development", "report"):
        count = 0
        while True:
            try:
                problems = task.problems(count, split)  # type: ignore[arg-type]
            except ValueError:
                break
            count += 1
        found += problems
    return found


def test_math_500(tmp_path: Path) -> None:
    task = task_of("math500", write_lines(tmp_path / "test.jsonl", MATH))
    problems = every_problem(task)
    assert {p.key for p in problems} == {record["unique_id"] for record in MATH}
    development = task.problems(3, "development")
    report = task.problems(3, "report", seed=5)
    assert not {p.key for p in development} & {p.key for p in report}
    assert report == task.problems(3, "report", seed=5) != task.problems(3, "report", seed=6)
    assert "\\boxed{}" in report[0].prompt
    assert task.is_correct(report[0], "Thus $\\boxed{2}$.")
    assert not task.is_correct(report[0], "Thus $\\boxed{3}$.")
    assert not task.checks_steps
    assert task.check_steps(report[0], ["One.", "Two."]) == [None, None]
    with pytest.raises(ValueError, match="has 6 report problems of math500, 13 were asked for"):
        task.problems(13, "report")


@pytest.mark.parametrize(
    "record",
    [
        {"ID": "2024-I-1", "Problem": "Find it.", "Solution": "...", "Answer": 204},
        {"id": 60, "problem": "Find it.", "solution": "...", "answer": "204", "year": "2024"},
        {"question": "Find it.", "answer": "204"},
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_aime(tmp_path: Path, record: dict[str, Any], ending: str) -> None:
    path = write_lines(tmp_path / f"aime.{ending}", [record])
    if ending == "json":
        path.write_text(json.dumps([record]))
    (problem,) = every_problem(task_of("aime24", path))
    assert problem.answer == "204"
    assert problem.key == str(record.get("ID", record.get("id", "line-1")))
    task = task_of("aime25", path)
    assert task.name == "aime25"
    assert task.is_correct(problem, "so \\boxed{204}")
    assert not task.is_correct(problem, "so \\boxed{2040}")


def test_votes_in_gpqa_are_for_letters(tmp_path: Path) -> None:
    task = task_of("gpqa_diamond", write_lines(tmp_path / "gpqa.jsonl", GPQA[:1]))
    answers = ["The answer is C.", "\\boxed{C}", "(C)", "I cannot tell."]
    assert [task.vote_key(answer) for answer in answers] == ["C", "C", "C", ""]


def test_gpqa_from_its_csv(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(GPQA[0]))
        writer.writeheader()
        writer.writerows(GPQA)
    task = task_of("gpqa_diamond", path)
    problems = every_problem(task)
    assert {problem.answer for problem in problems} == set("ABCD")
    for problem in problems:
        assert f"\n{problem.answer}) right " in problem.prompt
        assert task.is_correct(problem, f"Hence \\boxed{{{problem.answer}}}.")
        other = "ABCD"["ABCD".index(problem.answer) - 1]
        assert not task.is_correct(problem, f"Hence \\boxed{{{other}}}.")
    assert problems == every_problem(GpqaDiamond(path))
    assert problems != every_problem(GpqaDiamond(path, shuffle_seed=1))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("\\boxed{(B)}", "B"),
        ("\\boxed{B) wrong two}", "B"),
        ("first \\boxed{A}, no: \\boxed{B}", "B"),
        ("The answer is B.", "B"),
        ("**Answer: (B)**", "B"),
        ("The correct answer is option B", "B"),
        (" B ", "B"),
        ("(B).", "B"),
        ("Because of Bohr", None),
        ("\\boxed{Bohr}", None),
        ("The answer is Bohr", None),
        ("A bad day", None),
        ("", None),
    ],
)
def test_letters(answer: str, letter: str | None, tmp_path: Path) -> None:
    task = task_of("gpqa_diamond", write_lines(tmp_path / "gpqa.jsonl", GPQA[:1]))
    problem = Problem("x", "", "B")
    assert task.is_correct(problem, answer) is (letter == "B")


# LiveCodeBench

STDIN_TESTS = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}]
CALL_TESTS = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]


def packed(tests: Sequence[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def code_record(tests: Sequence[dict[str, str]], **changes: Any) -> dict[str, Any]:
    record = {
        "question_title": "Sums",
        "question_content": "Add them.",
        "platform": "atcoder",
        "question_id": "abc300_a",
        "contest_id": "abc300",
        "contest_date": "2023-04-29T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": packed(tests),
        "metadata": "{}",
    }
    return {**record, **changes}


def code_task(tmp_path: Path, record: dict[str, Any], run_code: bool = True) -> Task:
    return task_of(
        "livecodebench", write_lines(tmp_path / "lcb.jsonl", [record]), run_code=run_code
    )


def block(source: str) -> str:
    return f"Here it is:\n```python\n{source}\n```\nDone."


def test_programs_are_run_against_all_tests(tmp_path: Path) -> None:
    private = [*STDIN_TESTS, {"input": "1 1", "output": "2.0", "testtype": "stdin"}]
    task = code_task(tmp_path, code_record(STDIN_TESTS, private_test_cases=packed(private)))
    (problem,) = every_problem(task)
    assert "stdin" in problem.prompt
    right = "a, b = map(int, input().split())\nprint(a + b, end=' ')"
    assert task.is_correct(problem, block(right))
    assert task.is_correct(problem, block("print(0)") + block(right))
    assert not task.is_correct(problem, block(right) + block("print(0)"))
    assert not task.is_correct(problem, block("print(5)"))  # passes the public test alone
    assert not task.is_correct(problem, block("print(5); print(5)"))
    assert not task.is_correct(problem, block("print("))
    assert not task.is_correct(problem, right)
    assert task.is_correct(problem, block(f"assert pow(2, 3, 5) == 3\n{right}"))


def test_functions_are_called(tmp_path: Path) -> None:
    record = code_record(
        CALL_TESTS,
        starter_code="class Solution:\n    def add(self, xs: List[int], y: int) -> List[int]:",
        metadata=json.dumps({"func_name": "add"}),
    )
    task = code_task(tmp_path, record)
    (problem,) = every_problem(task)
    assert "def add" in problem.prompt
    body = "class Solution:\n    def add(self, xs: List[int], y: int):\n        print('noise')\n"
    assert task.is_correct(problem, block(f"{body}        return [x + y for x in xs]"))
    assert task.is_correct(problem, block("def add(xs, y):\n    return tuple(x + y for x in xs)"))
    assert not task.is_correct(problem, block(f"{body}        return xs"))
    assert not task.is_correct(problem, block(f"{body}        return object()"))
    assert not task.is_correct(problem, block("def other(): pass"))


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(60)\nprint(5)",
        "x = bytearray(2**29)\nprint(5)",
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "while True: pass",
    ],
    ids=["time", "sleep", "memory", "child"],
)
def test_limits(tmp_path: Path, source: str) -> None:
    path = write_lines(tmp_path / "lcb.jsonl", [code_record(STDIN_TESTS)])
    task = LiveCodeBench(path, run_code=True, limits=Limits(seconds=1, megabytes=256))
    (problem,) = every_problem(task)
    assert task.is_correct(problem, block("print(5)"))
    assert not task.is_correct(problem, block(source))


def test_code_is_run_only_if_asked(tmp_path: Path) -> None:
    task = code_task(tmp_path, code_record(STDIN_TESTS), run_code=False)
    (problem,) = every_problem(task)
    with pytest.raises(PermissionError, match="Allow it with run_code=True"):
        task.is_correct(problem, block("print(5)"))
    assert "run_code is off" in task.checker


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def test_a_pickle_that_would_run_something(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    harmful = base64.b64encode(zlib.compress(pickle.dumps(Harmful()))).decode()
    with pytest.raises(ValueError, match=r"private_test_cases: .*it holds builtins.print"):
        code_task(tmp_path, code_record(STDIN_TESTS, private_test_cases=harmful))
    assert "ran" not in capfd.readouterr().out


# Bad files


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "holds no records"),
        ("a.jsonl", '{"problem": "x", "answer": "1"}\n{"problem"', "a.jsonl, line 2 is no JSON"),
        ("a.jsonl", "[1]\n", "line 1 must be a JSON object, got list"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "{}", "must hold a list of objects, got dict"),
        ("a.json", "[3]", "record 1 must be a JSON object"),
        ("a.txt", "x", "must end in one of .jsonl, .json, .csv, .parquet"),
        ("a.jsonl", '{"problem": "x"}\n', "record 1 must have a field 'answer' or 'Answer'"),
        ("a.jsonl", '{"problem": " ", "answer": "1"}\n', "must have a field 'problem'"),
        ("a.csv", "problem\nx\n", "must have a field 'answer'"),
        ("a.jsonl", '{"id": 1, "problem": "x", "answer": "1"}\n' * 2, "another problem '1'"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        task_of("math500", tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "has no tests"),
        ({"public_test_cases": "[1"}, "public_test_cases: no JSON"),
        ({"private_test_cases": "!!"}, "private_test_cases: neither JSON nor packed JSON"),
        ({"private_test_cases": "aGVsbG8="}, "neither JSON nor packed JSON"),
        ({"public_test_cases": '[{"input": ""}]'}, "must have input and output"),
        ({"public_test_cases": json.dumps(CALL_TESTS)}, "name the function as func_name"),
        ({"question_content": ""}, "must have a field 'question_content'"),
    ],
)
def test_bad_code_records(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        code_task(tmp_path, code_record(STDIN_TESTS, **changes))


def test_options_that_are_the_same(tmp_path: Path) -> None:
    record = {**GPQA[0], "Incorrect Answer 1": "right 0"}
    with pytest.raises(ValueError, match="two options are the same"):
        task_of("gpqa_diamond", write_lines(tmp_path / "gpqa.jsonl", [record]))


def test_missing_files_and_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        task_of("math500", tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="math500 needs the path of its file"):
        task_of("math500")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "aime_2024_problems.parquet"
    records = [{"ID": "2024-II-4", "Problem": "Find it.", "Solution": "...", "Answer": 33}]
    if importlib.util.find_spec("pyarrow") is None:
        path.write_bytes(b"PAR1")
        with pytest.raises(ImportError, match="needs pyarrow: pip install pyarrow"):
            task_of("aime24", path)
        return
    pyarrow = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    (problem,) = every_problem(task_of("aime24", path))
    assert (problem.key, problem.answer) == ("2024-II-4", "33")
