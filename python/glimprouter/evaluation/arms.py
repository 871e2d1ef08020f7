"""What each arm did on the report problems: accuracy, shares, counts, seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from glimprouter.calibration.shares import ShareInterval
from glimprouter.evaluation.plan import Arm
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import ArmRecord, ProblemRecord
from glimprouter.evaluation.rules import rule_of
from glimprouter.evaluation.settings import settings_of
from glimprouter.evaluation.statistics import Interval, mean_interval, share_interval

__all__ = ["ArmResults", "Incomplete", "arms_of"]


@dataclass(frozen=True)
class Incomplete:
    """An arm that the report leaves out.

    Attributes:
        title: Of the arm.
        done: Problems that are recorded of the seed with the most.
        wanted: Problems of a whole seed.
    """

    title: str
    done: int
    wanted: int


@dataclass(frozen=True)
class ArmResults:
    """An arm and its problems; all seeds have the same ones.

    Attributes:
        arm: What ran.
        seeds: That are complete.
        runs: For each problem (by key), one record a seed.
    """

    arm: ArmRecord
    seeds: tuple[int, ...]
    runs: dict[str, list[ProblemRecord]] = field(repr=False)

    @property
    def title(self) -> str:
        """For tables."""
        return title_of(self.arm)

    @property
    def kind(self) -> str:
        """Rule and parameters but for what sets its share: what arms of other shares share."""
        return _described(self.arm)

    @property
    def records(self) -> list[ProblemRecord]:
        """All runs of all problems."""
        return [record for runs in self.runs.values() for record in runs]

    @property
    def right(self) -> dict[str, list[bool]]:
        """For each problem, right or wrong for each seed."""
        return {key: [run.correct for run in runs] for key, runs in self.runs.items()}

    @property
    def accuracy(self) -> Interval:
        """Mean over problems and seeds; the interval is over problems."""
        return self.mean(lambda record: float(record.correct), shares=True)

    @property
    def seed_accuracies(self) -> list[float]:
        """One a seed."""
        return np.mean(list(self.right.values()), axis=0).tolist()  # type: ignore[no-any-return]

    @property
    def step_share(self) -> ShareInterval | None:
        """Share of the glimpsed steps that the large model wrote; None where none was glimpsed."""
        runs = self.runs.values()
        glimpsed = [sum(r.glimpsed_steps for r in each) for each in runs]
        large = [sum(r.large_steps for r in each if r.glimpsed_steps) for each in runs]
        return share_interval(large, glimpsed)

    @property
    def priced(self) -> bool:
        """Whether its passes and tokens are those of the pair's two models."""
        return rule_of(self.arm.rule).priced

    @property
    def token_share(self) -> float:
        """Share of all written tokens, the answers' included, that the large model wrote.

        NaN where it is not the pair's large model as it is.
        """
        if not self.priced:
            return math.nan
        large = sum(record.large_tokens for record in self.records)
        every = large + sum(record.small_tokens for record in self.records)
        return large / every if every else math.nan

    def mean(self, value: Callable[[ProblemRecord], float], *, shares: bool = False) -> Interval:
        """Mean of something over problems and seeds; the interval is over problems."""
        means = [float(np.mean(list(map(value, runs)))) for runs in self.runs.values()]
        return mean_interval(means, shares=shares)

    @property
    def sends(self) -> str | None:
        """Whether the rule sent no step or every step, as a remark."""
        share = self.step_share
        if share is None or share.share not in (0.0, 1.0):
            return None
        return "sends nothing" if share.share == 0.0 else "sends everything"


def title_of(arm: ArmRecord) -> str:
    """For tables: the rule, with the share that was wanted or what was given."""
    if arm.wanted is not None:
        return _described(arm) + f", {100 * arm.wanted:g} % wanted"
    return " ".join([arm.rule, *(f"{k}={v:g}" for k, v in sorted(arm.parameters.items()))])


def _described(arm: ArmRecord) -> str:
    set_by = rule_of(arm.rule).set_by
    given = (f"{k}={v:g}" for k, v in sorted(arm.parameters.items()) if k != set_by)
    return " ".join([arm.rule, *given])


def arms_of(
    records: Records, batch: int | None = None, keys: Sequence[str] | None = None
) -> tuple[list[ArmResults], list[Incomplete]]:
    """Arms whose problems are all recorded, for at least one seed, and those that are not.

    Args:
        records: Of an evaluation.
        batch: Size of the batches; None for the main one.
        keys: Only these problems; None for all of the report.
    """
    main = records.identity["plan"]["batch"]
    batch = main if batch is None else batch
    wanted = records.identity["plan"]["problems"] if keys is None else len(keys)
    found: dict[str, dict[int, dict[str, ProblemRecord]]] = {}
    for unit, record in records.problems.items():
        if (
            unit.split == "report"
            and unit.batch == batch
            and (keys is None or unit.problem in keys)
        ):
            by_seed = found.setdefault(unit.arm, {})
            by_seed.setdefault(unit.seed, {})[unit.problem] = record
    whole: list[ArmResults] = []
    partial: list[Incomplete] = []
    for arm in _in_order(records.arms):
        by_seed = found.get(Arm(arm.rule, arm.parameters).label, {})
        seeds = sorted(seed for seed, done in by_seed.items() if len(done) == wanted)
        if not seeds:
            most = max(map(len, by_seed.values()), default=0)
            partial.append(Incomplete(title_of(arm), most, wanted))
            continue
        order = sorted(by_seed[seeds[0]])
        runs = {key: [by_seed[seed][key] for seed in seeds] for key in order}
        whole.append(ArmResults(arm, tuple(seeds), runs))
    return whole, partial


def _in_order(arms: Sequence[ArmRecord]) -> list[ArmRecord]:
    """The models alone first, then rule by rule, shares ascending."""
    rules = list(dict.fromkeys(arm.rule for arm in arms))
    rules.sort(key=lambda rule: not rule.endswith("-alone"))
    return sorted(
        arms,
        key=lambda arm: (
            rules.index(arm.rule),
            sorted(settings_of(arm.parameters).items()),
            _described(arm),
            arm.wanted or 0.0,
        ),
    )
