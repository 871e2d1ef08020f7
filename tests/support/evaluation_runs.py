"""A small evaluation of the embedded pair, on the task that it was trained for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import glimprouter as gr
from glimprouter.demo_pair import large_path, small_path
from glimprouter.evaluation import Plan, evaluate
from glimprouter.hf import RoutedModel
from glimprouter.tasks import Task, task_of

LIMITS = {"max_step_tokens": 64, "max_think_tokens": 320, "max_answer_tokens": 16}
SIZES: dict[str, Any] = {
    "problems": 8,
    "development_problems": 3,
    "policies": ["random", "entropy", "step-entropy", "margin:threshold=1", "wanted-share"],
    "shares": [0.4],
    "seeds": 1,
    "batch": 4,
    "rounds": 1,
    "probe_problems": 2,
    "probe_steps": 2,
    "timing_batches": [2],
    "timing_problems": 2,
}


@functools.cache
def pair() -> RoutedModel:
    """The pair, without drafts, so that passes do not follow the clock."""
    config = gr.RouterConfig(**LIMITS)
    return RoutedModel.from_pretrained(
        small_path(), large_path(), dtype="float32", config=config, drafts=0, max_sequences=32
    )


def task() -> Task:
    return task_of("list_reduction")


def evaluated(directory: Path, **changes: Any) -> Path:
    return evaluate(pair(), task(), directory, Plan(**{**SIZES, **changes}))


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    """A line of records but for what another run does otherwise: seconds, and rounding."""
    kept = {key: value for key, value in line.items() if key != "seconds"}
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in kept.items()}
