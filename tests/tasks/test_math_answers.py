"""Comparison of mathematical answers, by text and, where it is installed, by math-verify."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimprouter.tasks.competition_math import CompetitionMath
from glimprouter.tasks.math_answers import has_math_verify, last_boxed, same_text, stated_answer

SAME = [
    ("2", "2"),
    ("$2$", "2"),
    ("2.", "2"),
    ("2.0", "2"),
    ("007", "7"),
    ("1,234", "1234"),
    ("0.5", "\\frac{1}{2}"),
    ("\\dfrac12", "\\frac{1}{2}"),
    ("1/2", "\\frac{1}{2}"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
    ("\\text{Evelyn}", "Evelyn"),
    ("90^\\circ", "90"),
    ("x = 5", "5"),
    ("50\\%", "50"),
    ("\\$3.50", "3.5"),
    ("3\\sqrt3", "3\\sqrt{3}"),
    ("-\\frac{3}{4}", "-0.75"),
]
DIFFERENT = [
    ("2", "3"),
    ("-2", "2"),
    ("12", "1"),
    ("(1,2)", "(2,1)"),
    ("(1,234)", "1234"),
    ("\\frac{1}{2}", "\\frac{2}{1}"),
    ("x", "y"),
    ("", "0"),
]


@pytest.mark.parametrize(("stated", "gold"), SAME)
def test_equal_answers(stated: str, gold: str) -> None:
    assert same_text(stated, gold)
    assert same_text(gold, stated)


@pytest.mark.parametrize(("stated", "gold"), DIFFERENT)
def test_different_answers(stated: str, gold: str) -> None:
    assert not same_text(stated, gold)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so $\\boxed{\\frac{1}{2}}$ it is", "\\frac{1}{2}"),
        ("\\boxed{1} and then \\boxed {2}", "2"),
        ("\\fbox{no} \\boxed{3", "\\fbox{no} \\boxed{3"),
        ("\\boxed{1} \\boxed{2", "1"),
        ("Thus.\nThe answer is 12\nas was seen.", "12"),
        ("Final Answer: $7$", "$7$"),
        ("First this.\n\n42\n", "42"),
        ("", ""),
    ],
)
def test_what_a_text_states(text: str, answer: str) -> None:
    assert stated_answer(text) == answer


@given(st.text(alphabet="ab{}\\ 1", max_size=20))
def test_a_box_holds_balanced_braces(inside: str) -> None:
    found = last_boxed(f"\\boxed{{{inside}}}")
    if found is not None:
        assert found.count("{") == found.count("}")
    depth = 0
    for character in inside:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
    if depth == 0:
        assert found == inside


def one_problem(tmp_path: Path, answer: str, use_math_verify: bool | None) -> CompetitionMath:
    path = tmp_path / "math.jsonl"
    path.write_text(json.dumps({"problem": "x", "answer": answer}) + "\n")
    return CompetitionMath("math500", path, use_math_verify)


def test_votes_are_for_values(tmp_path: Path) -> None:
    task = one_problem(tmp_path, "2", use_math_verify=False)
    same = ["The answer is 0.5.", "So it is \\boxed{\\frac{1}{2}}, which is plain.", "x = 1/2"]
    assert {task.vote_key(answer) for answer in same} == {"1/2"}
    assert task.vote_key("\\boxed{\\sqrt{3}}") != task.vote_key("\\boxed{\\sqrt{2}}")


def test_who_compares_is_said(tmp_path: Path) -> None:
    assert one_problem(tmp_path, "2", use_math_verify=False).checker == "normalised text"
    expected = "math-verify" if has_math_verify() else "normalised text"
    assert one_problem(tmp_path, "2", use_math_verify=None).checker == expected
    if not has_math_verify():
        with pytest.raises(ImportError, match="pip install 'math-verify"):
            one_problem(tmp_path, "2", use_math_verify=True)


@pytest.mark.skipif(not has_math_verify(), reason="math-verify is not installed")
@pytest.mark.parametrize(
    ("stated", "gold", "same"),
    [
        ("\\sqrt{12}", "2\\sqrt{3}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("\\sqrt{12}", "3\\sqrt{2}", False),
    ],
)
def test_equal_formulas_need_math_verify(
    tmp_path: Path, stated: str, gold: str, same: bool
) -> None:
    task = one_problem(tmp_path, gold, use_math_verify=True)
    found = [p for s in ("development", "report") for p in _all_of(task, s)]
    answer = f"so $\\boxed{{{stated}}}$"
    assert task.is_correct(found[0], answer) is same
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task.is_correct, found[0], answer).result() is same


def _all_of(task: CompetitionMath, split: str) -> list:  # type: ignore[type-arg]
    try:
        return task.problems(1, split)  # type: ignore[arg-type]
    except ValueError:
        return []
