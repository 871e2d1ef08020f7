"""Where the most likely token is the same for both models, on the large model's own chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glimprouter.evaluation.plan import Arm
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import StepRecord
from glimprouter.evaluation.rules import LARGE_ALONE
from glimprouter.evaluation.statistics import Interval, mean_interval

__all__ = ["Agreement", "agreement_by_position", "agreement_of", "hard_steps", "read_steps"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of both models within some steps.

    Attributes:
        steps: How many.
        first: Share of first tokens that agree.
        later: Share of all others; both are means of the problems' shares.
        whole: Share of the steps in which all others agree.
    """

    steps: int
    first: Interval
    later: Interval
    whole: float


def read_steps(records: Records) -> list[StepRecord]:
    """Steps of the large model alone on report problems, as both models read them."""
    label, batch = Arm(LARGE_ALONE).label, records.identity["plan"]["batch"]
    return [
        step
        for unit, own in records.steps.items()
        if (unit.split, unit.arm, unit.batch) == ("report", label, batch)
        for step in own
        if step.agrees is not None
    ]


def hard_steps(records: Records, wanted: float) -> list[StepRecord] | None:
    """Those of :func:`read_steps` that H_init gives to the large model at a wanted share.

    Returns:
        None where the arm ``entropy`` was not run for this share, or compared the entropy of a
        renormalised top k, which was not read.
    """
    if records.identity["config"].get("entropy_top_k"):
        return None
    thresholds = [
        arm.parameters["threshold"]
        for arm in records.arms
        if (arm.rule, arm.wanted, set(arm.parameters)) == ("entropy", wanted, {"threshold"})
    ]
    if not thresholds:
        return None
    return [s for s in read_steps(records) if s.entropy is not None and s.entropy > thresholds[0]]


def agreement_of(steps: Sequence[StepRecord]) -> Agreement:
    """Within steps that were read by both models."""
    read = [step for step in steps if step.agrees]
    whole = sum("0" not in (step.agrees or "")[1:] for step in read)
    return Agreement(
        len(read),
        _share_by_problem([(step.problem, (step.agrees or "")[:1]) for step in read]),
        _share_by_problem([(step.problem, (step.agrees or "")[1:]) for step in read]),
        whole / len(read) if read else float("nan"),
    )


def agreement_by_position(steps: Sequence[StepRecord], least: int) -> list[tuple[int, Interval]]:
    """Share of the tokens at each position of a step; positions with fewer tokens are left out."""
    tokens: dict[int, list[tuple[str, str]]] = {}
    for step in steps:
        for position, agrees in enumerate(step.agrees or ""):
            tokens.setdefault(position, []).append((step.problem, agrees))
    return [
        (position, _share_by_problem(own))
        for position, own in sorted(tokens.items())
        if len(own) >= least
    ]


def _share_by_problem(tokens: Sequence[tuple[str, str]]) -> Interval:
    by_problem: dict[str, list[str]] = {}
    for problem, agrees in tokens:
        by_problem.setdefault(problem, []).append(agrees)
    joined = ("".join(parts) for parts in by_problem.values())
    return mean_interval([text.count("1") / len(text) for text in joined if text], shares=True)
