"""Oracles accept their own chains, reject what was changed in them, and follow any other."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimprouter.demo_pair import task as demo
from glimprouter.tasks import GeneratedTask, Problem, task_names, task_of

DRAWN = ("list_reduction", "arithmetic", "arithmetic_result_first", "search", "repair")
TASKS = [task for task in map(task_of, DRAWN) if isinstance(task, GeneratedTask)]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
seeds = st.integers(0, 2**32 - 1)


def drawn(task: GeneratedTask, seed: int, short: bool = False) -> Problem:
    return task.draw(random.Random(seed), short)


def with_another_digit(step: str, generator: random.Random) -> str:
    at = generator.choice([i for i, c in enumerate(step) if c.isdigit()])
    return step[:at] + generator.choice("0123456789".replace(step[at], "")) + step[at + 1 :]


@each_task
@given(seed=seeds, short=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_right_chain_is_right_and_ends_in_the_answer(
    task: GeneratedTask, seed: int, short: bool
) -> None:
    problem = drawn(task, seed, short)
    steps = task.right_steps(problem)
    assert task.check_steps(problem, steps) == [True] * len(steps)
    assert task.check_steps(problem, [f" {step}\n" for step in steps]) == [True] * len(steps)
    assert task.is_correct(problem, f"\n{problem.answer} ")
    assert not task.is_correct(problem, with_another_digit(problem.answer, random.Random(seed)))
    assert not task.is_correct(problem, "")
    assert problem.answer in (steps[-1] if task.name != "search" else problem.answer)


@each_task
@given(seed=seeds, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_digit_is_found_where_it_stands(
    task: GeneratedTask, seed: int, data: st.DataObject
) -> None:
    problem = drawn(task, seed)
    steps = task.right_steps(problem)
    at = data.draw(st.integers(0, len(steps) - 1))
    steps[at] = with_another_digit(steps[at], random.Random(seed))
    verdicts = task.check_steps(problem, steps)
    assert len(verdicts) == len(steps)
    assert verdicts[: at + 1] == [True] * at + [False]


@each_task
@given(seed=seeds, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_missing_a_repeated_and_a_foreign_step_are_wrong(
    task: GeneratedTask, seed: int, data: st.DataObject
) -> None:
    problem = drawn(task, seed)
    steps = task.right_steps(problem)
    at = data.draw(st.integers(0, len(steps) - 2))
    if steps[at] != steps[at + 1]:
        assert task.check_steps(problem, steps[:at] + steps[at + 1 :])[at] is False
    repeated = task.check_steps(problem, [*steps[: at + 1], *steps[at:]])
    # Arithmetic on like digits writes the same step twice by right.
    assert repeated[at + 1] is (steps[at] == steps[at + 1])
    foreign = data.draw(st.text(max_size=30).filter(lambda text: text.strip() != steps[at]))
    assert task.check_steps(problem, [*steps[:at], foreign])[at] is False
    assert task.check_steps(problem, [*steps, "One more."])[-1] is False


@pytest.mark.parametrize("task", [t for t in TASKS if t.correction], ids=lambda task: task.name)
@given(seed=seeds, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_correction_puts_the_chain_right(
    task: GeneratedTask, seed: int, data: st.DataObject
) -> None:
    problem = drawn(task, seed)
    steps = task.right_steps(problem)
    at = data.draw(st.integers(0, len(steps) - 1))
    right = steps[at]
    wrongs = [with_another_digit(right, random.Random(seed + k)) for k in range(3)]
    wrongs = [wrongs[0], *(f"Wait,{wrong.removeprefix('Wait,')}" for wrong in wrongs[1:])]
    corrected = f"Wait,{right.removeprefix('Wait,')}"
    mended = [*steps[:at], *wrongs, corrected, *steps[at + 1 :]]
    expected = [True] * at + [False] * 3 + [True] * (len(steps) - at)
    assert task.check_steps(problem, mended) == expected


@each_task
@given(seed=seeds, steps=st.lists(st.text(max_size=20), max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_text_is_judged(task: GeneratedTask, seed: int, steps: list[str]) -> None:
    problem = drawn(task, seed)
    lines = task.right_steps(problem)
    shuffled = [*lines, *steps]
    random.Random(seed).shuffle(shuffled)
    verdicts = task.check_steps(problem, shuffled)
    assert len(verdicts) == len(shuffled)
    assert all(verdict in (True, False, None) for verdict in verdicts)
    assert None not in verdicts[: 1 + next((i for i, v in enumerate(verdicts) if not v), 0)]


@each_task
def test_splits_are_disjoint_and_not_trained_on(task: GeneratedTask) -> None:
    development = {p.key for seed in (0, 1) for p in task.problems(60, "development", seed)}
    report = {p.key for seed in (0, 1) for p in task.problems(60, "report", seed)}
    generator = random.Random(0)
    training = {task.draw_for_training(generator).key for _ in range(300)}
    assert not development & report
    assert not training & (development | report)
    assert len({p.key for p in task.problems(80, "report")}) == 80
    assert task.problems(20, "report") == task.problems(80, "report")[:20]
    assert task.problems(20, "report") != task.problems(20, "report", seed=1)
    assert task.problems(0, "report") == []


def test_problems_are_the_same_in_every_process() -> None:
    code = (
        "from glimprouter.tasks import task_of\n"
        f"for name in {DRAWN}:\n"
        "    print(*task_of(name).problems(5, 'report', 3), sep='\\n')\n"
    )
    here = [str(p) for task in TASKS for p in task.problems(5, "report", 3)]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == here


@each_task
def test_bad_requests_are_refused(task: GeneratedTask) -> None:
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        task.problems(-1, "report")
    with pytest.raises(ValueError, match="split must be one of development, report, got 'test'"):
        task.problems(1, "test")  # type: ignore[arg-type]


def test_more_problems_than_there_are() -> None:
    class Few(type(task_of("arithmetic"))):  # type: ignore[misc]
        def draw(self, generator: random.Random, short: bool = False) -> Problem:
            question = f"{generator.randrange(100)}*2+10"
            return Problem(question, question, "")

    with pytest.raises(ValueError, match=r"no 90 report problems: \d+ were found"):
        Few().problems(90, "report")


def test_unknown_names_and_paths() -> None:
    assert task_names()[: len(DRAWN)] == DRAWN
    with pytest.raises(ValueError, match="no task is called 'chess'; there are: list_reduction"):
        task_of("chess")
    with pytest.raises(ValueError, match="search are drawn, it reads no file"):
        task_of("search", "problems.jsonl")


def test_tasks_need_no_torch() -> None:
    code = "import sys, glimprouter.tasks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


def test_arithmetic_and_every_opener() -> None:
    """An answer by Python's own arithmetic; each step begins with the same word."""
    task = task_of("arithmetic")
    assert isinstance(task, GeneratedTask)
    for problem in task.problems(50, "development"):
        assert problem.answer == str(eval(problem.prompt.removeprefix("Compute ")))
        steps = task.right_steps(problem)
        assert all(step.startswith("We ") for step in steps)
        for step in steps:
            if match := re.fullmatch(r"We get (.*)=(\d\d)\.", step):
                assert eval(match[1]) == int(match[2])


def test_arithmetic_with_the_result_first_is_the_same_calculation() -> None:
    """Step by step, with what comes out moved to the beginning and the openers left out."""
    plain, moved = task_of("arithmetic"), task_of("arithmetic_result_first")
    assert isinstance(plain, GeneratedTask)
    assert isinstance(moved, GeneratedTask)
    for problem in plain.problems(50, "development"):
        pairs = zip(plain.right_steps(problem), moved.right_steps(problem), strict=True)
        for step, other in pairs:
            if match := re.fullmatch(r"We get (.*)=(\d\d)\.", step):
                assert other == f"{match[2]}={match[1]}."
            elif match := re.fullmatch(r"We have (\d+)\.", step):
                assert other == f"{match[1]} so far."
            else:
                assert other == step.removeprefix("We take ").removesuffix(".") + " next."
    assert moved.problems(20, "report", 3) == plain.problems(20, "report", 3)
    assert moved.check_steps(
        Problem("47*6+25", "", "307"),
        ["47*6 next.", "52=7*6+0.", "29=4*6+5.", "We have 292.", "292 so far."],
    ) == [True, False, True, False, None]


def test_arithmetic_goes_on_from_what_is_written() -> None:
    task = task_of("arithmetic")
    problem = Problem("47*6+25", "Compute 47*6+25", "307")
    chain = [
        ("We take 47*6.", True),
        ("We get 7*6+0=52.", False),
        ("We get 4*6+5=29.", True),
        ("We have 292.", True),
        ("We take 292+25.", True),
        ("We get 2+5+0=07.", True),
        ("We get 9+2+0=12.", False),
        ("We get 2+0+1=03.", True),
        ("We have 327.", True),
        ("We have 327.", False),
        ("Anything.", None),
    ]
    assert task.check_steps(problem, [step for step, _ in chain]) == [v for _, v in chain]


def test_a_search_has_one_way_and_dead_ends_do_not_lead_back() -> None:
    task = task_of("search")
    problem = Problem("8 to 9: 8>56,5>73,6>0,3>29", "", "8539")
    steps = ["8 leads to 5,6.", "6 leads to 0.", "0 leads nowhere.", "9 is the goal."]
    assert task.check_steps(problem, steps) == [True, False, False, False]
    steps = ["8 leads to 5,6.", "6 leads to 0.", "Wait,5 leads to 7,3.", "3 leads to 2,9."]
    assert task.check_steps(problem, [*steps, "9 is the goal."]) == [True, False, True, True, True]
    steps = ["8 leads to 5,6.", "5 leads to 7,2.", "3 leads to 2,9.", "9 is the goal."]
    assert task.check_steps(problem, steps) == [True, False, False, True]
    for problem in task.problems(60, "development"):
        ends, _, listed = problem.key.partition(": ")
        edges = dict(part.split(">") for part in listed.split(","))
        ways = [ends[0]]
        while any(way[-1] in edges for way in ways):
            ways = [w + n for w in ways for n in edges.get(w[-1], "")] + [
                w for w in ways if w[-1] == ends[-1]
            ]
        assert ways.count(problem.answer) == 1
        assert problem.answer[-1] == ends[-1]


def test_repair_finds_the_first_error_and_goes_on_from_there() -> None:
    task = task_of("repair")
    key = "47+8=55,55-3=42,42+5=47"
    problem = Problem(key, f"Check {key}", "57")
    found = ["47+8=55.", "55-3=42.", "Wait,55-3=52.", "52+5=57.", "So 57."]
    assert task.check_steps(problem, found) == [True] * 5
    missed = ["47+8=55.", "55-3=42.", "42+5=47.", "So 47."]
    assert task.check_steps(problem, missed) == [True, True, False, False]
    late = ["47+8=55.", "55-3=42.", "42+5=47.", "Wait,55-3=52.", "52+5=57.", "So 57."]
    assert task.check_steps(problem, late) == [True, True, False, True, True, True]
    slip = ["47+8=55.", "55-3=42.", "Wait,55-3=62.", "62+5=67.", "So 67."]
    assert task.check_steps(problem, slip) == [True, True, False, False, True]


def test_repair_calculates_as_python_does() -> None:
    for problem in task_of("repair").problems(60, "report"):
        first, *lines = re.split(r",", problem.key)
        value = int(first[:2])
        for line in (first, *lines):
            value = (value + int(line[2:4])) % 100
        assert problem.answer == f"{value:02d}"


def test_the_shipped_models_saw_no_problem_of_list_reduction() -> None:
    task = task_of("list_reduction")
    for problem in (*task.problems(50, "development"), *task.problems(50, "report")):
        assert demo.is_held_out([int(number) for number in problem.key.split(",")])


def test_list_reduction_follows_what_is_written() -> None:
    task = task_of("list_reduction")
    problem = Problem("18,39,12", "Reduce 18,39,12", "")
    chain = [
        ("Start:18,39,12.", True),
        ("12,18 next.", True),
        ("16=18-12.", False),
        ("Left:39,16.", False),
        ("16,39 next.", True),
        ("87=16*3+39.", True),
        ("Left:87.", True),
        ("So 87.", True),
    ]
    assert task.check_steps(problem, [step for step, _ in chain]) == [v for _, v in chain]
    lost = ["Start:18,39,12.", "12,55 next.", "67=55-12.", "Left:39."]
    assert task.check_steps(problem, lost) == [True, False, False, None]
