"""Results of engines beside those of RoutedModel, on the shipped pair."""

from __future__ import annotations

from typing import Any

import pytest

from glimprouter.demo_pair import task
from glimprouter.hf import Result

CONFIG: dict[str, Any] = {
    "threshold": 0.5,
    "temperature": 0.0,
    "max_think_tokens": 400,
    "max_answer_tokens": 32,
    "max_step_tokens": 64,
    "repetition_guard": True,
    "top_p": 1.0,
}
PROBLEMS = task.held_out_problems(40, seed=5)
PROMPTS = [problem.prompt for problem in PROBLEMS]
NEAR_TIE = 1e-4  # nats; both compute in float32, in another order


def _is_near_tie(result: Result) -> bool:
    """Whether a glimpse was at the threshold, where rounding decides."""
    return any(
        abs(step.entropy - CONFIG["threshold"]) < NEAR_TIE
        for step in result.trace.steps
        if step.entropy is not None
    )


def differing_texts(got: list[tuple[str, str]], want: list[Result]) -> list[str]:
    """Thinking and answers of a server that are not a result's."""
    found = []
    for own, expected in zip(got, want, strict=True):
        thought = expected.text.split("</think>")[0].removeprefix("<think>").strip()
        if own != (thought, expected.answer) and not _is_near_tie(expected):
            found.append(f"{own} is not {(thought, expected.answer)}")
    return found


def differences(got: list[Result], want: list[Result]) -> list[str]:
    """Sequences with another route, step or text, unless a glimpse was at the threshold."""
    found = []
    for index, (own, expected) in enumerate(zip(got, want, strict=True)):
        steps, wanted = own.trace.steps, expected.trace.steps
        if _is_near_tie(expected):
            continue
        same = [(s.model, s.text, s.end_reason) for s in steps] == [
            (s.model, s.text, s.end_reason) for s in wanted
        ]
        if not same or own.token_ids != expected.token_ids or own.trace.error:
            found.append(f"{index}: {own.text!r} {own.trace.error}")
            continue
        for step, other in zip(steps, wanted, strict=True):
            assert step.entropy == pytest.approx(other.entropy, abs=NEAR_TIE)
    return found
