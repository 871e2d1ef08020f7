"""What came of a problem, whoever steered it, as lines of a record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glimprouter.evaluation.recording import NO_DRAFT, Draft, signals_of
from glimprouter.evaluation.records import ProblemRecord, StepRecord, Unit
from glimprouter.policies import Glimpse
from glimprouter.tasks import Problem, Task
from glimprouter.trace.totals import TraceTotals

if TYPE_CHECKING:
    from glimprouter.chains import CandidateResult, CandidateRule
    from glimprouter.hf import Result, TokenCounts
    from glimprouter.trace import Trace

__all__ = ["Outcome", "candidate_outcome", "check_steps", "entropies_of", "records_of"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A solved problem, and what it has cost.

    Attributes:
        result: The chain.
        written: Tokens by writer, answer included.
        glimpses: Of steps, as far as known.
        drafts: What a rule that reads steps saw of them.
        dropped: What both models computed for steps, or chains, that were not chosen.
        dropped_tokens: Tokens of these, by writer.
        dropped_read: Further tokens of these that the large model read.
        dropped_seconds: Of their passes.
        all_passes: Forward passes of each model in which any of the problem's sequences was; None
            where it had but one.
        decision: Of a system around the chain, in [0, 1].
    """

    result: Result
    written: Mapping[str, int]
    glimpses: Mapping[int, Glimpse]
    drafts: Mapping[int, Draft]
    dropped: Mapping[str, TokenCounts] = field(default_factory=dict)
    dropped_tokens: Mapping[str, int] = field(default_factory=dict)
    dropped_read: int = 0
    dropped_seconds: float = 0.0
    all_passes: Mapping[str, int] | None = None
    decision: float | None = None

    def passes(self, model: str) -> int:
        """Forward passes of a model that the problem was part of."""
        own = self.result.counts[model].passes
        return own if self.all_passes is None else self.all_passes[model]

    def unused(self, model: str) -> int:
        """Tokens that a model computed, but for rewritten ones, beside those that it wrote."""
        other = "large" if model == "small" else "small"
        tokens = self.dropped_tokens.get(model, 0)
        tokens += self.dropped_read if model == "large" else 0
        for counts in (self.result.counts, self.dropped):
            if model in counts:
                drafts, compared = counts[model], counts[other]  # of the other one's tokens, by it
                tokens += drafts.drafted + drafts.aside_tokens
                tokens += compared.drafted - compared.accepted
        return tokens


def candidate_outcome(rule: CandidateRule, one: CandidateResult) -> Outcome:
    """Of a chain whose steps a rule chose among drafts."""
    trace = one.result.trace
    totals = TraceTotals.of(trace)
    written = {"small": totals.small.tokens, "large": totals.large.tokens}
    writers = [step.model for step in trace.steps]
    if len(one.choices) > len(writers):  # the end of the thinking was chosen like a step
        writers.append("large" if one.choices[-1].kept is None else "small")
    if writers:
        written[writers[-1]] += totals.closing_tokens
    written[trace.answer_model] += trace.answer_tokens
    drafts: dict[int, Draft] = {}
    for step, choice in zip(trace.steps, one.choices, strict=False):
        score = rule.compared(choice)
        if math.isfinite(score):
            drafts[step.index] = (None, None, score)
    return Outcome(
        one.result,
        written,
        entropies_of(trace),
        drafts,
        one.dropped,
        one.dropped_tokens,
        one.dropped_read,
        one.dropped_seconds,
        one.passes,
    )


def entropies_of(trace: Trace) -> dict[int, Glimpse]:
    """What a trace knows of first tokens."""
    return {
        step.index: Glimpse(trace.seed, trace.substream, step.index, 0, None, step.entropy)
        for step in trace.steps
        if step.entropy is not None
    }


def records_of(
    task: Task, problem: Problem, unit: Unit, outcome: Outcome
) -> tuple[list[StepRecord], ProblemRecord]:
    """The steps, and the problem that closes them."""
    result, trace = outcome.result, outcome.result.trace
    common: dict[str, Any] = unit._asdict()
    verdicts = check_steps(task, problem, [step.text for step in trace.steps])
    steps = []
    for step, verdict in zip(trace.steps, verdicts, strict=True):
        entropy, perplexity, score = outcome.drafts.get(step.index, NO_DRAFT)
        record = StepRecord(
            **common,
            index=step.index,
            writer=step.model,
            **signals_of(outcome.glimpses.get(step.index)),
            text=step.text,
            tokens=step.num_tokens,
            seconds=step.seconds,
            end_reason=step.end_reason,
            correct=verdict,
            step_entropy=entropy,
            step_perplexity=perplexity,
            step_score=score,
        )
        steps.append(record)
    closing = ProblemRecord(
        **common,
        correct=trace.error is None and task.is_correct(problem, result.answer),
        answer=result.answer,
        steps=len(steps),
        large_steps=sum(step.writer == "large" for step in steps),
        glimpsed_steps=sum(step.entropy is not None for step in steps),
        small_tokens=outcome.written["small"],
        large_tokens=outcome.written["large"],
        small_passes=outcome.passes("small"),
        large_passes=outcome.passes("large"),
        rewritten_tokens=result.counts["small"].rewritten,
        seconds=trace.seconds + outcome.dropped_seconds,
        end_reason=trace.end_reason,
        error=trace.error,
        small_unused=outcome.unused("small"),
        large_unused=outcome.unused("large"),
        decision=outcome.decision,
    )
    return steps, closing


def check_steps(task: Task, problem: Problem, texts: Sequence[str]) -> list[bool | None]:
    """What the task says of each step; None each where it has no checker of steps.

    Raises:
        ValueError: It says something of another number of steps.
    """
    verdicts = task.check_steps(problem, [text.strip() for text in texts])
    if len(verdicts) != len(texts):
        raise ValueError(
            f"task {task.name}: check_steps gave {len(verdicts)} verdicts for {len(texts)} steps"
        )
    return verdicts
