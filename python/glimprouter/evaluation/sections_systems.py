"""Sections of the report about whole chains: systems around them, and their length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from glimprouter.chains import length_harmonizing_rewards
from glimprouter.evaluation import formats
from glimprouter.evaluation.arms import ArmResults, arms_of
from glimprouter.evaluation.document import Block, Heading, Paragraph, Table
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import ProblemRecord
from glimprouter.evaluation.rules import LARGE_ALONE, SMALL_ALONE, rule_of
from glimprouter.evaluation.sections_arms import compare
from glimprouter.evaluation.statistics import Interval, mean_interval

__all__ = ["rewards_of", "system_sections"]

ALPHA = 2.0  # of O1-Pruner's reward: being right against being short


def system_sections(records: Records) -> Iterator[Block]:
    """Both of them."""
    arms, _ = arms_of(records)
    yield from _systems(arms)
    yield from _lengths(arms)


def plain(arms: Sequence[ArmResults], rule: str) -> ArmResults | None:
    """The arm of a model alone, without settings."""
    return next((a for a in arms if a.arm.rule == rule and not a.arm.parameters), None)


def _systems(arms: Sequence[ArmResults]) -> Iterator[Block]:
    systems = [arm for arm in arms if rule_of(arm.arm.rule).decision]
    if not systems:
        return
    yield Heading("Systems around the chain")
    rows = []
    for arm in systems:
        decisions = arm.mean(lambda r: math.nan if r.decision is None else r.decision)
        differences = [
            "-"
            if (other := plain(arms, rule)) is None
            else formats.points_interval(compare(arm, other).difference)
            for rule in (SMALL_ALONE, LARGE_ALONE)
        ]
        rows.append(
            [
                arm.title,
                f"{rule_of(arm.arm.rule).decision}: {formats.percent(decisions.estimate)} %",
                rule_of(arm.arm.rule).trained,
                formats.percent_interval(arm.accuracy),
                *differences,
                f"{arm.mean(lambda r: r.small_tokens + r.small_unused).estimate:.0f}",
                f"{arm.mean(lambda r: r.large_tokens + r.large_unused).estimate:.0f}",
                f"{arm.mean(lambda r: r.small_passes).estimate:.1f}",
                f"{arm.mean(lambda r: r.large_passes).estimate:.1f}",
            ]
        )
    yield Table(
        [
            "system",
            "decides",
            "trained here",
            "right, % (95 % over problems)",
            "minus small alone, points",
            "minus large alone, points",
            "small tokens",
            "large tokens",
            "passes small",
            "passes large",
        ],
        rows,
        "Means of a problem; tokens are all that were computed, chains that did not count included."
        " What each system is, is in its docstring (glimprouter.evaluation.chain_systems). ari:"
        " small is the large model in 8 bits. ari and ftp are greedy, and so is the new answer of"
        " spirit. Votes are by what the task takes for the same answer.",
        frozenset({1, 2}),
    )


def _lengths(arms: Sequence[ArmResults]) -> Iterator[Block]:
    yield Heading("Short and right: O1-Pruner's reward")
    reference = plain(arms, LARGE_ALONE)
    if reference is None:
        yield Paragraph("The large model alone is the reference, and has not been run to its end.")
        return
    rows = [
        [
            arm.title,
            f"{arm.mean(_length).estimate:.1f}",
            formats.percent(arm.accuracy.estimate),
            formats.number_interval(rewards_of(arm, reference)),
        ]
        for arm in arms
    ]
    yield Table(
        ["arm", "tokens of the chain", "right, %", "reward (95 % over problems)"],
        rows,
        "The length-harmonizing reward (arXiv 2501.12570), (L_ref - L) / L + alpha (A - A_ref),"
        f" alpha {ALPHA:g}, within [-2, 4], against the large model's chains of the same problem:"
        " recorded traces are scored, nothing is trained.",
        frozenset(),
    )


def _length(record: ProblemRecord) -> float:
    return float(record.small_tokens + record.large_tokens)


def rewards_of(arm: ArmResults, reference: ArmResults) -> Interval:
    """Mean reward of an arm's chains; the interval is over problems.

    Args:
        arm: Whose chains.
        reference: Whose mean length and accuracy on the same problems are compared with.
    """
    means = []
    for key, runs in arm.runs.items():
        known = reference.runs[key]
        rewards = length_harmonizing_rewards(
            [max(1, int(_length(run))) for run in runs],
            [run.correct for run in runs],
            [max(1, int(_length(run))) for run in known],
            [run.correct for run in known],
            alpha=ALPHA,
        )
        means.append(float(np.mean(rewards)))
    return mean_interval(means)
