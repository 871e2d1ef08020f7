"""A record as values that JSON holds, and back: what a saved sequence has of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from glimprouter.hf.pair.prompts import EncodedPrompt
from glimprouter.hf.sequence.drafts import Drafts
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.running_step import RunningStep
from glimprouter.hf.sequence.signals import TokenStatistics
from glimprouter.trace import Trace, TraceStep

_VALUES = (
    "generated",
    "writers",
    "answering",
    "answer_start",
    "step_starts",
    "passes",
    "repeats",
    "max_new_tokens",
    "closed_at",
    "num_passes",
    "num_rewritten",
    "num_asides",
    "num_aside_tokens",
)
_PARTS = ("prompt", "trace", "running", "statistics", "drafts")


def state_of(record: SequenceRecord) -> dict[str, Any]:
    """All of a record that :func:`record_from_state` needs."""
    values = {name: getattr(record, name) for name in _VALUES}
    return values | {name: dataclasses.asdict(getattr(record, name)) for name in _PARTS}


def record_from_state(state: dict[str, Any], index: int, **options: Any) -> SequenceRecord:
    """A record from :func:`state_of`; ``options`` are the other fields, which the pair decides."""
    own = {**state, "prompt": EncodedPrompt(**state["prompt"])}
    steps = [TraceStep(**step) for step in state["trace"]["steps"]]
    own["trace"] = Trace(**{**state["trace"], "steps": steps})
    own["running"] = RunningStep(**own["running"])
    own["drafts"] = Drafts.from_state(own["drafts"])
    own["statistics"] = TokenStatistics.from_state(own["statistics"])
    return SequenceRecord(index=index, **own, **options)
