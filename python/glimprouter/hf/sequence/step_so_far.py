"""A step of the trace, of what there is of the running one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glimprouter.hf.sequence.running_step import runs_of
from glimprouter.trace import TraceStep

if TYPE_CHECKING:
    from glimprouter.hf.sequence.record import SequenceRecord


def step_so_far(record: SequenceRecord, reason: str) -> TraceStep:
    """The running step as if it ended here; nothing changes.

    Args:
        record: Of the sequence.
        reason: Why it ends.
    """
    running, end = record.running, len(record.generated)
    return TraceStep(
        index=len(record.trace.steps),
        model=running.model,
        entropy=running.entropy,
        threshold=record.trace.threshold,
        text=record.text(running.start, end),
        num_tokens=end - running.start,
        seconds=running.seconds,
        end_reason=reason,
        drafted=list(running.drafted),
        rewritten=running.rewritten,
        runs=runs_of(record.writers[running.start :]),
        score=running.score,
    )
