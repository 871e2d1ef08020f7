"""What an evaluation is to run: policies, shares, seeds, problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glimprouter.config import check_integer
from glimprouter.evaluation.rules import LARGE_ALONE, SMALL_ALONE, rule_of

__all__ = ["Arm", "Plan", "PolicySpec"]

DEFAULT_POLICIES = (
    "random",
    "entropy",
    "max-probability",
    "margin",
    "varentropy",
    "step-entropy",
    "step-perplexity",
)
DEFAULT_SHARES = (0.1, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to solve the problems: a policy with all its parameters.

    Attributes:
        rule: Name of the policy.
        parameters: Of the policy, by name.
        wanted: Share of large steps that the parameters were chosen for; None where they were
            given.
    """

    rule: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    wanted: float | None = None

    @property
    def label(self) -> str:
        """Names it in records: rule and parameters, without the share."""
        return " ".join([self.rule, *(f"{k}={v!r}" for k, v in sorted(self.parameters.items()))])


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy as it was asked for.

    Attributes:
        rule: Its name.
        parameters: Those that were given.
    """

    rule: str
    parameters: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> PolicySpec:
        """Reads ``NAME`` or ``NAME:parameter=number,...``.

        Beside the policy's own parameters there are those of ``settings.SETTINGS``.

        Raises:
            ValueError: An unknown policy or parameter, or a value that is no number.
        """
        name, _, rest = text.partition(":")
        rule = rule_of(name.strip())
        parameters: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"policy {text!r}: give parameters as NAME=NUMBER, got {part!r}")
            if key.strip() in parameters:
                raise ValueError(f"policy {text!r} gives {key.strip()!r} twice")
            parameters[key.strip()] = _number(text, key.strip(), value)
        spec = cls(rule.name, parameters)
        rule.build(spec.example)  # refused here are all parameters that are given
        if rule.name == SMALL_ALONE and parameters:
            raise ValueError(f"{SMALL_ALONE} takes no parameters: they would change nothing")
        if rule.name == LARGE_ALONE and set(parameters) - {"drafts"}:
            raise ValueError(f"{LARGE_ALONE} takes no parameter but drafts: nothing is glimpsed")
        return spec

    @property
    def takes_share(self) -> bool:
        """Whether a wanted share is to set it: it has none of what a share sets."""
        set_by = rule_of(self.rule).set_by
        return set_by is not None and set_by not in self.parameters

    @property
    def example(self) -> dict[str, float]:
        """Parameters that an arm of it could have."""
        if not self.takes_share:
            return dict(self.parameters)
        return self.parameters_at(max(0.5, rule_of(self.rule).least))

    def parameters_at(self, value: float) -> dict[str, float]:
        """All parameters, with this threshold or share."""
        set_by = rule_of(self.rule).set_by
        assert set_by is not None
        return {**self.parameters, set_by: value}


def _number(policy: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"policy {policy!r}: {name} must be a number, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"policy {policy!r}: {name} must be a finite number, got {text!r}")
    return value


@dataclass(frozen=True, slots=True)
class Plan:
    """Policies x shares x seeds x problems.

    The models alone are always among the arms. Thresholds are chosen on development problems, the
    figures come from report problems; tasks keep them disjoint.

    Attributes:
        problems: Report problems, >= 2.
        development_problems: >= 2.
        task_seed: Which problems.
        policies: As :meth:`PolicySpec.parse` reads them; those without a threshold (or share) of
            their own run once for each of ``shares``.
        shares: Wanted shares of glimpsed steps that the large model writes, each in (0, 1).
        seeds: Runs of each arm, with other random numbers, >= 1.
        batch: Problems in flight, >= 1. A kill loses at most these.
        timing_batches: Further batch sizes at which each arm is timed.
        timing_problems: Report problems that are timed there, >= 1.
        rounds: Routed development runs for each threshold, >= 1: routing moves the distribution
            that it is chosen on.
        probe_problems: Report problems on whose chains forks find out what routing needs to know.
        probe_steps: Steps of each of these chains that are forked, drawn at random.
        probe_draws: Continuations of each model from such a step.
    """

    problems: int = 200
    development_problems: int = 50
    task_seed: int = 0
    policies: Sequence[str] = DEFAULT_POLICIES
    shares: Sequence[float] = DEFAULT_SHARES
    seeds: int = 3
    batch: int = 16
    timing_batches: Sequence[int] = ()
    timing_problems: int = 16
    rounds: int = 2
    probe_problems: int = 100
    probe_steps: int = 4
    probe_draws: int = 1

    def __post_init__(self) -> None:
        """Refuses what cannot be run.

        Raises:
            TypeError: A value of another type.
            ValueError: One out of range, or an unknown policy or parameter.
        """
        least = {"problems": 2, "development_problems": 2, "task_seed": 0}
        least |= {"seeds": 1, "batch": 1, "timing_problems": 1, "rounds": 1}
        least |= {"probe_problems": 0, "probe_steps": 1, "probe_draws": 1}
        for name, low in least.items():
            check_integer(name, getattr(self, name), low)
        for size in self.timing_batches:
            check_integer("a timing batch", size, 1)
        for share in self.shares:
            _check_share(share)
        specs = self.specs
        if any(spec.takes_share for spec in specs) and not self.shares:
            raise ValueError("these policies need wanted shares; give at least one")

    @property
    def specs(self) -> list[PolicySpec]:
        """The policies, each once, without the models alone as they always run."""
        parsed = {str(spec): spec for spec in map(PolicySpec.parse, self.policies)}
        alone = (SMALL_ALONE, LARGE_ALONE)
        return [s for s in parsed.values() if s.rule not in alone or s.parameters]

    @property
    def rows(self) -> int:
        """Sequences that are in flight, at most."""
        batch = max([self.batch, *self.timing_batches])
        own = (rule_of(spec.rule).rows(spec.example, batch) for spec in self.specs)
        return max(own, default=batch)

    def settings(self) -> dict[str, Any]:
        """What the records of one folder have in common."""
        sizes = ["problems", "development_problems", "task_seed", "batch", "rounds"]
        names = [*sizes, "probe_problems", "probe_steps", "probe_draws"]
        return {name: getattr(self, name) for name in names}


def _check_share(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a share must be a number, got {value!r}")
    if not 0.0 < value < 1.0:
        raise ValueError(
            f"a wanted share must lie in (0, 1), got {value!r}; the models alone, which are 0 and"
            " 1, are always run"
        )
