"""The record of one routed chain of thought, and its file format (JSON lines)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimprouter.files import write_atomically
from glimprouter.trace import json_fields
from glimprouter.trace.json_fields import Kind

__all__ = ["SCHEMA_VERSION", "Trace", "TraceStep", "parse_trace"]

SCHEMA_VERSION = 4  # rises with every field, so that an older reader says what is wrong
_READABLE = (2, 3, 4)
_KIND = "glimprouter.trace"
_HEADER = (
    "prompt",
    "seed",
    "substream",
    "threshold",
    "think_limit",
    "answer_limit",
    "derived_limits",
    "policy",
)
_LATER = {"answer_drafted", "policy"}  # fields that files of version 2 may lack
# Fields of steps that files before a version may lack.
_LATER_IN_STEPS = {3: {"drafted", "rewritten", "runs"}, 4: {"score"}}


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of the thinking.

    Attributes:
        index: From 0.
        model: Who wrote it, ``"small"`` or ``"large"``: also where white space before its first
            word, or all behind its first tokens (``RouterConfig.large_tokens``), is the other's.
        entropy: Entropy of the glimpse in nats; None when nothing was glimpsed (forced route).
        threshold: tau of the decision in nats; NaN where the file that was read holds none, or a
            policy decided.
        text: What was written, delimiter included.
        num_tokens: Its tokens.
        seconds: Wall-clock time of its forward passes and routing; in a batch, the sequence's
            share.
        end_reason: Lower-case name of :class:`glimprouter.EndReason`, or ``"interrupted"``.
        drafted: Which of its tokens, counted from 0, the small model had drafted and the large one
            wrote, too.
        rewritten: Tokens that the small model wrote of it at first, and that were dropped when a
            policy had the large one write the step; 0 for other steps.
        runs: Who wrote which of its tokens: the lengths of runs of one writer, the small model's
            (perhaps 0) and the large one's in turn. Empty where the file that was read has none.
        score: That a policy gave the step as the small model wrote it, for what the large one said
            of it; None where none was given.
    """

    index: int
    model: str
    entropy: float | None
    threshold: float
    text: str
    num_tokens: int
    seconds: float
    end_reason: str
    drafted: list[int] = field(default_factory=list)
    rewritten: int = 0
    runs: list[int] = field(default_factory=list)
    score: float | None = None


@dataclass(slots=True)
class Trace:
    """A chain of thought: its steps in order, then the answer.

    Attributes:
        prompt: The user's message as text, or None for raw ids.
        seed: Seed of the run.
        substream: Random key of the sequence.
        threshold: tau in nats; NaN where the file that was read holds none, or a policy decided.
        think_limit: Budget of thinking tokens in force.
        answer_limit: Budget of answer tokens in force.
        derived_limits: Which of the two nobody set, so that they follow the models' contexts:
            ``"think"``, ``"answer"``.
        policy: Name of the policy that decided (:mod:`glimprouter.policies`); None where the
            threshold did.
        steps: The steps.
        answer: Text of the answer.
        answer_model: Who wrote it.
        answer_tokens: Its tokens.
        answer_seconds: As ``TraceStep.seconds``.
        answer_drafted: As ``TraceStep.drafted``.
        total_tokens: All generated tokens, closing ids included.
        end_reason: Why the sequence ended: ``"eos"``, ``"answer_budget"``, ``"interrupted"``, ...
        error: What went wrong, or None.
    """

    prompt: str | None = None
    seed: int = 0
    substream: int = 0
    threshold: float = 1.0
    think_limit: int = 0
    answer_limit: int = 0
    derived_limits: list[str] = field(default_factory=list)
    policy: str | None = None
    steps: list[TraceStep] = field(default_factory=list)
    answer: str = ""
    answer_model: str = "large"
    answer_tokens: int = 0
    answer_seconds: float = 0.0
    answer_drafted: list[int] = field(default_factory=list)
    total_tokens: int = 0
    end_reason: str = "none"
    error: str | None = None

    @property
    def large_step_share(self) -> float:
        """Share of the steps that the large model wrote; 0 without steps."""
        large = sum(step.model == "large" for step in self.steps)
        return large / len(self.steps) if self.steps else 0.0

    @property
    def seconds(self) -> float:
        """Time of all steps and the answer."""
        return sum(step.seconds for step in self.steps) + self.answer_seconds

    def to_jsonl(self, path: str | Path) -> None:
        """Write header line, a line a step, end line; the file appears whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        record = dataclasses.asdict(self)
        steps = record.pop("steps")
        header = {"kind": _KIND, "schema_version": SCHEMA_VERSION}
        for name in _HEADER:
            header[name] = record.pop(name)
        lines = [header, *({"kind": "step", **step} for step in steps)]
        lines.append({"kind": "end", "num_steps": len(steps), **record})
        write_atomically(path, "".join(f"{_dump(line)}\n" for line in lines))

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Trace:
        """Read a trace back.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no trace, of another schema version, cut short, or a value is of
                another type than the format says.
        """
        return parse_trace(json_fields.read_text(Path(path)), str(path))


_STEP_KINDS = {
    "index": json_fields.COUNT,
    "model": json_fields.WRITER,
    "entropy": json_fields.FINITE_OR_NULL,
    "threshold": json_fields.THRESHOLD,
    "text": json_fields.TEXT,
    "num_tokens": json_fields.COUNT,
    "seconds": json_fields.SECONDS,
    "end_reason": json_fields.TEXT,
    "drafted": json_fields.COUNTS,
    "rewritten": json_fields.COUNT,
    "runs": json_fields.COUNTS,
    "score": json_fields.FINITE_OR_NULL,
}
_TRACE_KINDS = {
    "prompt": json_fields.TEXT_OR_NULL,
    "seed": json_fields.COUNT,
    "substream": json_fields.COUNT,
    "threshold": json_fields.THRESHOLD,
    "think_limit": json_fields.COUNT,
    "answer_limit": json_fields.COUNT,
    "derived_limits": json_fields.TEXTS,
    "policy": json_fields.TEXT_OR_NULL,
    "answer": json_fields.TEXT,
    "answer_model": json_fields.WRITER,
    "answer_tokens": json_fields.COUNT,
    "answer_seconds": json_fields.SECONDS,
    "answer_drafted": json_fields.COUNTS,
    "total_tokens": json_fields.COUNT,
    "end_reason": json_fields.TEXT,
    "error": json_fields.TEXT_OR_NULL,
}


def parse_trace(text: str, name: str) -> Trace:
    """Read what :meth:`Trace.to_jsonl` wrote.

    Args:
        text: The whole file.
        name: Name of the file, for messages.

    Raises:
        ValueError: It is no trace, of another schema version, cut short, or a value is of another
            type than the format says.
    """
    lines = _parse_lines(text, name)
    header = lines[0]
    if header.get("kind") != _KIND:
        raise ValueError(f"{name} is not a glimprouter trace (no header line of kind {_KIND!r})")
    version = header.get("schema_version")
    if version not in _READABLE or isinstance(version, bool):
        raise ValueError(
            f"{name} has schema version {json_fields.shown(version)}; this glimprouter reads"
            f" {_READABLE[0]} to {_READABLE[-1]}"
        )
    end = lines[-1]
    steps = lines[1:-1]
    if end.get("kind") != "end" or end.get("num_steps") != len(steps):
        raise ValueError(f"{name} is cut short: its end line is missing or counts other steps")
    if any(step.get("kind") != "step" for step in steps):
        raise ValueError(f"{name} is not a valid trace: a line between the ends is no step")
    values = {**_fields(header, {"schema_version"}), **_fields(end, {"num_steps"})}
    later = _LATER if version == _READABLE[0] else set()
    if missing := sorted(set(_TRACE_KINDS) - later - set(values)):
        raise ValueError(f"{name} is not a valid trace: it lacks {missing[0]!r}")
    own = [fields for since, fields in _LATER_IN_STEPS.items() if version >= since]
    if any(not step.keys() >= fields for step in steps for fields in own):
        raise ValueError(f"{name} is not a valid trace: a step lacks one of its fields")
    try:
        trace = Trace(**values, steps=[TraceStep(**_fields(step, set())) for step in steps])
    except TypeError as error:
        raise ValueError(f"{name} is not a valid trace: {error}") from error
    _check(trace, _TRACE_KINDS, f"{name} is not a valid trace:")
    for number, step in enumerate(trace.steps, start=2):
        _check(step, _STEP_KINDS, f"{name} is not a valid trace: line {number},")
    return trace


def _check(record: Trace | TraceStep, kinds: dict[str, Kind], where: str) -> None:
    for field_name, kind in kinds.items():
        json_fields.check(getattr(record, field_name), kind, f"{where} {field_name!r}")


def _dump(record: dict[str, Any]) -> str:
    """JSON has neither infinity nor NaN: such a threshold is written as a string."""
    threshold = record.get("threshold", 0.0)
    if not math.isfinite(threshold):
        record = {**record, "threshold": "nan" if math.isnan(threshold) else "inf"}
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _fields(record: dict[str, Any], without: set[str]) -> dict[str, Any]:
    fields = {name: value for name, value in record.items() if name not in {"kind", *without}}
    if fields.get("threshold") in ("inf", "nan"):
        fields["threshold"] = float(fields["threshold"])
    return fields


def _parse_lines(text: str, name: str) -> list[dict[str, Any]]:
    records = []
    # Not splitlines(): a text may hold separators that JSON leaves as they are.
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            record = json_fields.parse(line)
        except ValueError as error:
            raise ValueError(
                f"{name} is not a glimprouter trace, or is cut short: line {number} is not JSON"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{name} is not a glimprouter trace: line {number} is no JSON object")
        records.append(record)
    return records
