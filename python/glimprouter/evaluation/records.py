"""What an evaluation writes down: a line a step, a line a problem."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

from glimprouter.trace import json_fields
from glimprouter.trace.json_fields import Kind

__all__ = [
    "ArmRecord",
    "ProbeRecord",
    "ProbedRecord",
    "ProblemRecord",
    "Record",
    "SessionRecord",
    "StepRecord",
    "Unit",
    "to_line",
    "to_record",
]

_FINITE = Kind("a finite number", lambda v: json_fields.is_number(v) and math.isfinite(v))
_BOOL = Kind("true or false", lambda value: isinstance(value, bool))
_BOOL_OR_NULL = Kind("true, false or null", lambda value: value is None or isinstance(value, bool))
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_NUMBERS = Kind(
    "an object of numbers",
    lambda value: isinstance(value, dict) and all(map(json_fields.is_number, value.values())),
)
_KINDS: dict[str, Kind] = {
    "str": json_fields.TEXT,
    "str | None": json_fields.TEXT_OR_NULL,
    "int": json_fields.COUNT,
    "float": _FINITE,
    "float | None": json_fields.FINITE_OR_NULL,
    "bool": _BOOL,
    "bool | None": _BOOL_OR_NULL,
    "dict[str, Any]": _OBJECT,
    "dict[str, float]": _NUMBERS,
}


class Unit(NamedTuple):
    """One problem, solved once by one arm.

    Attributes:
        split: ``"development"`` or ``"report"``.
        arm: Label of the arm.
        seed: Of the run.
        batch: Problems that were in flight together, at most.
        problem: Key of the problem.
    """

    split: str
    arm: str
    seed: int
    batch: int
    problem: str


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A start of the evaluation, the first one or a resumption.

    Attributes:
        started: UTC time, ISO 8601.
        machine: Processor, versions.
        commit: Of a source tree that the code ran from; None elsewhere.
    """

    kind: ClassVar[str] = "session"
    started: str
    machine: dict[str, Any]
    commit: str | None


@dataclass(frozen=True, slots=True)
class ArmRecord:
    """An arm that is run on the report problems, and how its threshold was found.

    Attributes:
        rule: Name of the policy.
        parameters: Of the policy.
        wanted: Share that they were chosen for; None where they were given.
        development_share: Share of glimpsed steps that went to the large model on the development
            problems at this threshold; None where nothing was chosen.
        rounds: Routed development runs.
    """

    kind: ClassVar[str] = "arm"
    rule: str
    parameters: dict[str, float]
    wanted: float | None
    development_share: float | None = None
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a chain.

    Attributes:
        split, arm, seed, batch, problem: The unit.
        index: From 0.
        writer: ``"small"`` or ``"large"``.
        entropy: Of the glimpse, nats; None, with the next three, where nothing was glimpsed. But
            for a chain of the large model alone it is what the small model, reading it again,
            would have glimpsed.
        max_prob: Largest probability of the first token.
        margin: Of the two largest.
        varentropy: Square nats.
        text: What was written.
        tokens: In it.
        seconds: Of its passes; in a batch, the sequence's share.
        end_reason: Why the step ended.
        correct: What the task's checker says of it; None where it cannot tell.
        step_entropy: Mean entropy of the small model over the step's tokens as it wrote them, nats;
            None where it was not computed, as the next two.
        step_perplexity: ``exp(-mean ln p)`` of the small model over the step's tokens.
        step_score: What the rule compared of the step as the small model wrote it; None where it
            reads no steps.
        agrees: For each token ``1`` where the most likely tokens of both models are the same, else
            ``0``.
    """

    kind: ClassVar[str] = "step"
    split: str
    arm: str
    seed: int
    batch: int
    problem: str
    index: int
    writer: str
    entropy: float | None
    max_prob: float | None
    margin: float | None
    varentropy: float | None
    text: str
    tokens: int
    seconds: float
    end_reason: str
    correct: bool | None = None
    step_entropy: float | None = None
    step_perplexity: float | None = None
    step_score: float | None = None
    agrees: str | None = None

    @property
    def unit(self) -> Unit:
        """Whose step it is."""
        return Unit(self.split, self.arm, self.seed, self.batch, self.problem)


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """One solved problem; it closes the steps before it.

    Attributes:
        split, arm, seed, batch, problem: The unit.
        correct: Whether the answer is right.
        answer: As it was given.
        steps: Of the thinking.
        large_steps: Those that the large model wrote.
        glimpsed_steps: Those that were glimpsed.
        small_tokens, large_tokens: Written by each model, answer included.
        small_passes, large_passes: Forward passes of each model that the problem was part of,
            prompt included.
        rewritten_tokens: That the small model wrote and the large one then wrote anew.
        small_unused, large_unused: Further tokens that each model computed beside those that it
            wrote of the chain: the small model's drafts, and those that the large one compared and
            that did not hold; questions and steps that were read for a policy; steps and chains
            that were not chosen.
        seconds: Of its passes; in a batch, the sequence's share.
        end_reason: Why the chain ended.
        error: What went wrong, or None.
        decision: Of a system around the chain, in [0, 1]: what its docstring says; else None.
    """

    kind: ClassVar[str] = "problem"
    split: str
    arm: str
    seed: int
    batch: int
    problem: str
    correct: bool
    answer: str
    steps: int
    large_steps: int
    glimpsed_steps: int
    small_tokens: int
    large_tokens: int
    small_passes: int
    large_passes: int
    rewritten_tokens: int
    seconds: float
    end_reason: str
    error: str | None = None
    small_unused: int = 0
    large_unused: int = 0
    decision: float | None = None

    @property
    def unit(self) -> Unit:
        """Which problem of which arm."""
        return Unit(self.split, self.arm, self.seed, self.batch, self.problem)


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """A step of the small model's chain from which both models went on, each to the end.

    Attributes:
        seed: Of the chain.
        problem: Key of the problem.
        step: Index of the step.
        draw: Which pair of continuations.
        entropy, max_prob, margin, varentropy: Of the glimpse.
        text: The step as the small model wrote it in this continuation.
        small_correct: Whether the small model's continuation came to the right answer.
        large_correct: Whether the large model's did.
        once_correct: Whether it did with this one step by the large model, the rest by the small.
        step_entropy, step_perplexity: Of that text, as in :class:`StepRecord`.
    """

    kind: ClassVar[str] = "probe"
    seed: int
    problem: str
    step: int
    draw: int
    entropy: float
    max_prob: float
    margin: float
    varentropy: float
    text: str
    small_correct: bool
    large_correct: bool
    once_correct: bool
    step_entropy: float | None = None
    step_perplexity: float | None = None


@dataclass(frozen=True, slots=True)
class ProbedRecord:
    """A chain whose probes are done; it closes them.

    Attributes:
        seed: Of the chain.
        problem: Key of the problem.
        steps: Steps of the chain.
        asked: Steps that were to be probed.
        reached: Those that were.
    """

    kind: ClassVar[str] = "probed"
    seed: int
    problem: str
    steps: int
    asked: int
    reached: int


Record: TypeAlias = (
    SessionRecord | ArmRecord | StepRecord | ProblemRecord | ProbeRecord | ProbedRecord
)
_CLASSES: dict[str, type[Any]] = {
    each.kind: each
    for each in (SessionRecord, ArmRecord, StepRecord, ProblemRecord, ProbeRecord, ProbedRecord)
}


def to_line(record: Record) -> dict[str, Any]:
    """A record as JSON takes it."""
    return {"kind": record.kind, **dataclasses.asdict(record)}


def to_record(values: Mapping[str, Any], where: str) -> Record:
    """A record from what JSON gave.

    Args:
        values: The object of a line.
        where: File and line, for messages.

    Raises:
        ValueError: An unknown kind or field, one that is missing, or a value of another type.
    """
    kind = values.get("kind")
    if kind not in _CLASSES:
        raise ValueError(f"{where} has the unknown kind {json_fields.shown(kind)}")
    fields = {field.name: field for field in dataclasses.fields(_CLASSES[kind])}
    given = {name: value for name, value in values.items() if name != "kind"}
    if unknown := sorted(set(given) - set(fields)):
        raise ValueError(f"{where}: a {kind} has no field {json_fields.shown(unknown[0])}")
    needed = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    if missing := sorted(needed - set(given)):
        raise ValueError(f"{where}: a {kind} lacks {missing[0]!r}")
    for name, value in given.items():
        json_fields.check(value, _KINDS[str(fields[name].type)], f"{where}, {name!r}")
    record: Record = _CLASSES[kind](**given)
    return record
