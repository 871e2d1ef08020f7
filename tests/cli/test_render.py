"""What reaches the terminal: text that cannot command it, tables, intervals; the demo's task."""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from glimprouter import TraceStep
from glimprouter.cli import intervals, render
from glimprouter.demo_pair import task

# All of Unicode, surrogates included, and often what could do harm.
HARMFUL = "\x1b\x07\r\x00\x7f\x9b\x90\x9d\u202e\u2066\u2069\u200e\u061c\u2028\ufeff\U000e0041\n\t "
texts = st.text(st.characters() | st.sampled_from(HARMFUL), max_size=30) | st.text(
    alphabet=st.characters(categories=["Cs", "Cc", "Cf", "Co", "Cn"]), max_size=10
)
ALLOWED_CONTROLS = "\n\t"
JOINERS = "\u200c\u200d"


def is_harmless(character: str) -> bool:
    """Neither a control, nor invisible formatting, nor a separator of lines that is no newline."""
    if character in ALLOWED_CONTROLS or character in JOINERS:
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@settings(max_examples=500)
@given(texts)
@example("\x1b]0;title\x07\x1b[2J\x9b31m")
@example("\u202etxt.exe\u202c")
@example("12\r34")
def test_no_character_commands_the_terminal(text: str) -> None:
    shown = render.neutralise(text)
    assert all(map(is_harmless, shown))
    assert not set(shown) & set(
        "\x1b\r\x7f\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
    assert not any(0x80 <= ord(character) < 0xA0 for character in shown)
    shown.encode()  # no lone surrogate: it can be printed


def test_every_single_code_point() -> None:
    """Exhaustive, for Hypothesis need not find the one that is forgotten."""
    for code in range(0x110000):
        character = chr(code)
        shown = render.neutralise(character)
        assert shown, hex(code)
        assert all(map(is_harmless, shown)), hex(code)
        if is_harmless(character):
            assert shown == character, hex(code)


@given(texts, texts)
def test_pieces_give_what_the_whole_gives(first: str, second: str) -> None:
    """A sequence that arrives in pieces is caught as well."""
    pieces = render.neutralise(first) + render.neutralise(second)
    assert pieces == render.neutralise(first + second)


@given(texts)
def test_nothing_disappears_and_nothing_is_done_twice(text: str) -> None:
    shown = render.neutralise(text)
    assert len(shown) >= len(text)
    assert render.neutralise(shown) == shown


ORDINARY = {
    "latin": "Größe, naïve, ﬁn — “so”…",
    "code": "if (x < 3) {\n\treturn x * 2;  // ok\n}\n",
    "greek": "Ἐν ἀρχῇ",
    "cyrillic": "Шаг за шагом",
    "hebrew": "צעד אחר צעד, שָׁלוֹם",
    "arabic": "خطوة بخطوة، مرحبًا",
    "persian with joiner": "می\u200cخواهم",
    "devanagari with joiner": "क्\u200dष कदम",
    "thai": "ทีละขั้น",
    "japanese": "一歩ずつ　考える。",
    "korean": "한 걸음씩",
    "emoji with joiner": "👩\u200d🔬 👍🏽 ❤️",
    "no-break spaces": "10\u00a0km, 5\u202f%",
    "combining": "e\u0301 a\u0308",
    "mathematics": "∀x∈ℝ: x² ≥ 0 ⇒ √x²=|x|",
}


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    assert render.neutralise(text) == text


READABLE = {
    "escape": ("\x1b[2J", "\u241b[2J"),
    "carriage return": ("a\rb", "a\u240db"),
    "nul": ("\x00", "\u2400"),
    "delete": ("\x7f", "\u2421"),
    "c1": ("\x9b31m", "\\x9b31m"),
    "override": ("\u202e", "\\u202e"),
    "tag": ("\U000e0041", "\\U000e0041"),
    "surrogate": ("\ud800", "\N{REPLACEMENT CHARACTER}"),
    "line separator": ("\u2028", "\\u2028"),
}


@pytest.mark.parametrize(("text", "shown"), READABLE.values(), ids=READABLE)
def test_what_is_shown_instead(text: str, shown: str) -> None:
    assert render.neutralise(text) == shown


def step(**changes: object) -> TraceStep:
    fields = {
        "index": 3,
        "model": "large",
        "entropy": 1.23456,
        "threshold": 1.0,
        "text": "\nSo\tx = 4.\n\n",
        "num_tokens": 12,
        "seconds": 0.0456,
        "end_reason": "delimiter",
    }
    return TraceStep(**{**fields, **changes})  # type: ignore[arg-type]


def test_step_line() -> None:
    line = render.step_line(step())
    assert line.plain == "   3  large      1.235      12     45.6  So x = 4."
    forced = render.step_line(step(model="small", entropy=None, text="a\nb\x1b[1m"))
    assert forced.plain == "   3  small          -      12     45.6  a\u2424b\u241b[1m"
    styles = [{str(span.style) for span in shown.spans} for shown in (line, forced)]
    assert styles == [{render.WRITER_STYLE["large"]}, {render.WRITER_STYLE["small"]}]


def test_step_header_stands_over_its_columns() -> None:
    header, line = render.step_header().plain, render.step_line(step(text="text")).plain
    for heading, value in (("writer", "large"), ("text", "text")):
        assert header.index(heading) == line.index(value)
    for heading, value in (("step", "3"), ("H (nats)", "1.235"), ("tokens", "12"), ("ms", "45.6")):
        assert header.index(heading) + len(heading) == line.index(value) + len(value)


def test_table_lines() -> None:
    lines = render.table_lines(
        ["", "ms a\ntoken", "share"], [["routed", "1.25", "9.0 %"], ["x", "10.50", "100.0 %"]]
    )
    assert [line.plain for line in lines] == [
        "         ms a",
        "        token    share",
        "routed   1.25    9.0 %",
        "x       10.50  100.0 %",
    ]
    assert [str(line.style) for line in lines] == ["bold", "bold", "", ""]


def test_a_table_needs_as_many_cells_as_columns() -> None:
    with pytest.raises((ValueError, IndexError)):
        render.table_lines(["a", "b"], [["only one"]])


def test_saved_picture_loads_nothing(tmp_path: Path) -> None:
    console = render.make_console(record=True, plain=True)
    console.print(render.step_line(step()))
    render.save_svg(console, tmp_path / "demo.svg", "a title")
    svg = (tmp_path / "demo.svg").read_text(encoding="utf-8")
    assert "4." in svg
    assert not re.search(r"url\((?!#)", svg), "nothing but references inside the file"
    assert "@font-face" not in svg


@pytest.mark.parametrize("trials", [1, 2, 12, 200])
def test_wilson_interval(trials: int) -> None:
    for successes in sorted({0, 1, trials // 3, trials - 1, trials}):
        got = intervals.proportion(successes, trials)
        want = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert got.estimate == successes / trials
        assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-6)
        assert 0.0 <= got.low <= got.estimate <= got.high + 1e-12
        assert got.high <= 1.0


OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(OUTCOMES)
def test_paired_difference(pairs: list[tuple[bool, bool]]) -> None:
    """Wald's interval over the table with a half added to each of its four cells."""
    got = intervals.paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    differences = [int(a) - int(b) for a, b in pairs]
    weights = [Fraction(1)] * len(pairs) + [Fraction(1, 2)] * 4
    values = [*differences, 1, -1, 0, 0]
    total = sum(weights)
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    variance = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True)) / total
    half = stats.norm.ppf(0.975) * math.sqrt(variance / total)
    assert got.estimate == pytest.approx(sum(differences) / len(pairs))
    assert got.low == pytest.approx(max(-1.0, float(mean) - half), abs=1e-6)
    assert got.high == pytest.approx(min(1.0, float(mean) + half), abs=1e-6)


def test_paired_ratio() -> None:
    """The bootstrap's ends against those of Student's t over the logarithms."""
    generator = np.random.default_rng(7)
    below = generator.uniform(1.0, 9.0, 400)
    above = 0.7 * below * np.exp(0.3 * generator.standard_normal(400))
    got = intervals.paired_ratio(above.tolist(), below.tolist())
    logs = np.log(above / below)
    assert got.estimate == pytest.approx(stats.gmean(above / below))
    ends = stats.t.interval(0.95, 399, loc=logs.mean(), scale=stats.sem(logs))
    assert np.log([got.low, got.high]) == pytest.approx(ends, abs=0.04 * (ends[1] - ends[0]))
    assert intervals.paired_ratio(above.tolist(), below.tolist()) == got, "seeded"
    assert intervals.paired_ratio([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))


def test_intervals_refuse_nothing_and_unequal() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        intervals.proportion(0, 0)
    for first, second in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="the same problems twice"):
            intervals.paired_difference(first, second)
        with pytest.raises(ValueError, match="need pairs"):
            intervals.paired_ratio([1.0] * len(first), [1.0] * len(second))
    with pytest.raises(ValueError, match="positive"):
        intervals.paired_ratio([0.0], [1.0])


def reduced(numbers: list[int]) -> int:
    """The task by its words: sort, take two, put the combination in."""
    while len(numbers) > 1:
        a, b, *rest = sorted(numbers)
        even = (a + b) % 2 == 0
        numbers = [*rest, b - a if even else (3 * a + b) % 100]
    return numbers[0]


@given(st.lists(st.integers(0, 99), min_size=1, max_size=9))
def test_problem(numbers: list[int]) -> None:
    problem = task.problem_of(numbers)
    assert int(problem.answer) == reduced(numbers)
    assert re.fullmatch(r"\d\d", problem.answer)
    assert problem.numbers == tuple(numbers)
    assert re.fullmatch(r"Reduce \d\d(,\d\d)*", problem.prompt)
    assert [int(n) for n in problem.prompt.removeprefix("Reduce ").split(",")] == numbers
    assert task.is_correct(problem, f" {problem.answer}\n")
    assert not task.is_correct(problem, f"{(reduced(numbers) + 1) % 100:02d}")
    assert not task.is_correct(problem, f"{problem.answer}.")


def test_problem_known() -> None:
    """18,39,12: 12 and 18 give 6; 6 and 39 give 57."""
    assert task.problem_of([18, 39, 12]).answer == "57"
    assert [task.combine(*pair) for pair in ((12, 18), (6, 39), (33, 34), (7, 7))] == [6, 57, 33, 0]


def test_held_out_problems() -> None:
    problems = task.held_out_problems(60, seed=5)
    assert problems == task.held_out_problems(60, seed=5)
    assert problems[:20] == task.held_out_problems(20, seed=5)
    assert problems != task.held_out_problems(60, seed=6)
    assert len({problem.numbers for problem in problems}) == 60
    for problem in problems:
        text = problem.prompt.removeprefix("Reduce ")
        assert zlib.crc32(text.encode()) % task.HELD_OUT_MODULUS == 0
        assert task.is_held_out(problem.numbers)
        assert task.MIN_NUMBERS <= len(problem.numbers) <= task.MAX_NUMBERS
    assert task.held_out_problems(0, seed=5) == []
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        task.held_out_problems(-1, seed=5)


def test_the_share_that_is_held_out() -> None:
    """About one list in HELD_OUT_MODULUS, whatever its length."""
    generator = np.random.default_rng(3)
    for length in range(task.MIN_NUMBERS, task.MAX_NUMBERS + 1):
        lists = generator.integers(0, 100, (4000, length)).tolist()
        held_out = sum(map(task.is_held_out, lists))
        assert stats.binomtest(held_out, 4000, 1 / task.HELD_OUT_MODULUS).pvalue > 1e-4
