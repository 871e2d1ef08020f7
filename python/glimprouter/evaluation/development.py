"""Thresholds for wanted shares, chosen on development problems in routed runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glimprouter.calibration.shares import Entropies, find_fixed_point
from glimprouter.evaluation.plan import Arm, PolicySpec
from glimprouter.evaluation.records import ArmRecord
from glimprouter.evaluation.rules import SMALL_ALONE, Rule, rule_of
from glimprouter.evaluation.solving import Bench, Solver, Solving
from glimprouter.tasks import Problem

__all__ = ["arm_for_share"]

NEVER = 1e9  # a threshold that no step exceeds
TOLERANCE = 0.01  # of the share of steps that lie between a threshold and the exact quantile


def arm_for_share(
    bench: Bench,
    spec: PolicySpec,
    wanted: float,
    problems: Sequence[Problem],
    *,
    batch: int,
    rounds: int,
) -> ArmRecord:
    """The parameters with which a policy sends about a share of the glimpsed steps.

    Args:
        bench: Pair, task and records; development runs are recorded like others.
        spec: A policy that a share is to set.
        wanted: Share in (0, 1).
        problems: Of the development split.
        batch: In flight.
        rounds: Routed runs, at most.

    Raises:
        ValueError: No step of a development run was glimpsed.
    """
    rule = rule_of(spec.rule)
    if rule.set_by == "share":
        return ArmRecord(rule.name, spec.parameters_at(wanted), wanted)

    def solved(arm: Arm) -> Solving:
        solving = Solving(arm, "development", 0, batch)
        Solver(bench, solving, problems).solve()
        return solving

    def routed(_: int, score: float) -> Entropies:
        arm = Arm(rule.name, spec.parameters_at(rule.threshold(score)))
        return _scores(bench, rule, spec, solved(arm), problems)

    found = find_fixed_point(
        routed,
        _scores(bench, rule, spec, solved(_unrouted(rule, spec)), problems),
        wanted,
        ">",
        max_rounds=rounds,
        tolerance=TOLERANCE,
    )
    parameters = spec.parameters_at(rule.threshold(found.threshold))
    bench.advance((rounds - found.rounds) * len(problems))  # rounds that were not needed
    chosen = Solving(Arm(rule.name, parameters), "development", 0, batch)
    done = [bench.file.records.problems[chosen.unit(problem)] for problem in problems]
    glimpsed = sum(record.glimpsed_steps for record in done)
    share = sum(record.large_steps for record in done) / glimpsed
    return ArmRecord(rule.name, parameters, wanted, share, found.rounds)


def _unrouted(rule: Rule, spec: PolicySpec) -> Arm:
    """An arm that never goes to the large model, and records what the rule compares."""
    if rule.reads_steps:
        return Arm(rule.name, spec.parameters_at(rule.threshold(NEVER)))
    glimpsed = {name: value for name, value in spec.parameters.items() if name == "entropy_top_k"}
    return Arm(SMALL_ALONE, glimpsed)


def _scores(
    bench: Bench, rule: Rule, spec: PolicySpec, solving: Solving, problems: Sequence[Problem]
) -> Entropies:
    """What a rule compares, of all glimpsed steps of a run, ascending."""
    assert rule.signal is not None
    scores: list[float] = []
    for problem in problems:
        steps = bench.file.records.steps.get(solving.unit(problem), [])
        values = (getattr(step, rule.signal) for step in steps)
        own = [rule.score(value) for value in values if value is not None]
        if rule.along is not None:
            own = rule.along(own, spec.parameters)
        scores += own
    if not scores:
        raise ValueError(
            f"policy {rule.name}: no step of {len(problems)} development problems was glimpsed, so"
            " no threshold can be chosen; do the models think in steps on this task?"
        )
    return np.sort(np.array(scores, dtype=np.float32))
