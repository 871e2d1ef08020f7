"""Sums over a trace, for the commands and the page that show it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from glimprouter.trace.record import Trace, TraceStep

__all__ = [
    "Totals",
    "TraceTotals",
    "deciding_rule",
    "format_share",
    "settings_recorded",
    "unfinished_reason",
]


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of some steps.

    Attributes:
        steps: How many.
        tokens: In them.
        seconds: Time; 0 where none was recorded.
    """

    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TraceTotals:
    """Who wrote how much of a chain of thought.

    Attributes:
        small: The small model's steps of the thinking, and its tokens of all steps.
        large: The large model's, likewise.
        thinking: Both together.
        closing_tokens: Neither in a step nor in the answer: the ids that close the thinking.
        seconds: Thinking and answer.
    """

    small: Totals
    large: Totals
    thinking: Totals
    closing_tokens: int
    seconds: float

    @classmethod
    def of(cls, trace: Trace) -> TraceTotals:
        """Sums up a trace."""
        thinking = _sum(trace.steps)
        small, large = (
            replace(
                _sum([step for step in trace.steps if step.model == model]),
                tokens=sum(_tokens_of(step, model) for step in trace.steps),
            )
            for model in ("small", "large")
        )
        counted = thinking.tokens + trace.answer_tokens
        return cls(small, large, thinking, max(trace.total_tokens - counted, 0), trace.seconds)


def _tokens_of(step: TraceStep, model: str) -> int:
    """Tokens of a step that a model wrote."""
    if step.runs:
        return sum(step.runs[model == "large" :: 2])
    return step.num_tokens if step.model == model else 0


def _sum(steps: list[TraceStep]) -> Totals:
    return Totals(
        len(steps), sum(step.num_tokens for step in steps), sum(step.seconds for step in steps)
    )


def format_share(part: float, whole: float) -> str:
    """A share in per cent, or a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def settings_recorded(trace: Trace) -> bool:
    """Whether rule, seed and limits are known; files of the published client hold none of them."""
    return trace.policy is not None or not math.isnan(trace.threshold)


def deciding_rule(trace: Trace) -> str:
    """What decided about the steps, as untrusted text: the policy's name, or tau."""
    if trace.policy is not None:
        return f"policy {trace.policy}"
    return "tau is infinite" if math.isinf(trace.threshold) else f"tau = {trace.threshold:g} nats"


def unfinished_reason(trace: Trace) -> str | None:
    """Why the chain is not whole, as untrusted text, or None if it is."""
    if trace.error is not None:
        return trace.error
    if trace.end_reason in ("interrupted", "none", "error"):
        return "the run was interrupted" if trace.end_reason == "interrupted" else "it has no end"
    return None
