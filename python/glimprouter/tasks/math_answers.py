r"""Comparing mathematical answers: by math-verify where it is installed, else by their text."""

from __future__ import annotations

import importlib
import importlib.util
import re
import threading
from fractions import Fraction


def has_math_verify() -> bool:
    """Whether math-verify is installed."""
    return importlib.util.find_spec("math_verify") is not None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}``; None without a complete one."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 1
        for at in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[match.end() : at]
    return None


def stated_answer(text: str) -> str:
    r"""What a text gives as its answer: the last box; else what follows "answer is", "answer:".

    Without either the last line.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    named = re.findall(r"answer\s*(?:is|:|=)\s*([^\n]+)", text, flags=re.IGNORECASE)
    lines = text.strip().splitlines()
    return (named or lines or [""])[-1]


def normalised(answer: str) -> str:
    """The answer without what does not change its value: spaces, dollars, units of text, braces."""
    answer = answer.strip().strip("*").strip().rstrip(".").strip("$").strip()
    answer = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\\(?:left|right|,|!|;|:|quad|displaystyle)(?![a-zA-Z])|~", "", answer)
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer)
    answer = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", answer)
    answer = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", answer)
    answer = re.sub(r"\^\s*\{?\\circ\}?|\\degree|\\%|%|\\\$|\$", "", answer)
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    answer = re.sub(r"^[a-zA-Z]\s*=\s*", "", answer)
    return re.sub(r"\s+", "", answer)


def value_of(answer: str) -> Fraction | None:
    """The value of a normalised integer, decimal or fraction; None for anything else."""
    simple = re.sub(r"\\frac\{(-?\d+)\}\{(-?\d+)\}", r"\1/\2", answer).removeprefix("+")
    try:
        return Fraction(simple)
    except (ValueError, ZeroDivisionError):
        return None


def same_text(stated: str, gold: str) -> bool:
    """Whether two answers are the same once normalised, or numbers of the same value."""
    first, second = normalised(stated), normalised(gold)
    values = value_of(first), value_of(second)
    return first == second or (values[0] is not None and values[0] == values[1])


def same_by_math_verify(text: str, gold: str) -> bool:
    """Whether math-verify finds the answer of a text equal to the right one.

    Its time limits are signals, which only the main thread can take: elsewhere there are none.
    """
    math_verify = importlib.import_module("math_verify")
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    right = math_verify.parse(f"\\boxed{{{gold}}}", parsing_timeout=seconds)
    stated = math_verify.parse(text, parsing_timeout=seconds)
    return bool(math_verify.verify(right, stated, timeout_seconds=seconds))
