"""Records of an evaluation that never ran, with what a test plants in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glimprouter.evaluation.record_file import RecordFile
from glimprouter.evaluation.records import (
    ArmRecord,
    ProbedRecord,
    ProbeRecord,
    ProblemRecord,
    SessionRecord,
    StepRecord,
)

PROBLEMS = 40
STEPS = 6


def identity(**changes: Any) -> dict[str, Any]:
    """Of a pair of a thousand and of ten thousand weights."""
    plan = {"problems": PROBLEMS, "development_problems": 4, "task_seed": 0, "batch": 8}
    plan |= {"rounds": 2, "probe_problems": 4, "probe_steps": 2, "probe_draws": 1}
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "answer_model": "large"}
    return {
        "pair": f"{'a' * 64}:{'b' * 64}",
        "weights": {"small": 1_000_000, "large": 10_000_000},
        "dtypes": {"small": "float32", "large": "float32"},
        "one_vocabulary": True,
        "task": "planted",
        "checks_steps": True,
        "problems_digest": "0",
        "plan": plan,
        "config": config,
        "engine": "paged",
        "execution": "eager",
        "device": "cpu",
        "drafts": 0,
        **changes,
    }


def session() -> SessionRecord:
    return SessionRecord("2026-01-01T00:00:00+00:00", {"processor": "none"}, None)


def step(unit: dict[str, Any], index: int, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "writer": "small",
        "entropy": 0.5,
        "max_prob": 0.6,
        "margin": 0.3,
        "varentropy": 0.4,
        "text": f"step {index}.\n\n",
        "tokens": 5,
        "seconds": 0.01,
        "end_reason": "delimiter",
        "correct": True,
        "step_entropy": 0.2,
        "step_perplexity": 1.5,
    }
    return StepRecord(**unit, index=index, **{**values, **changes})


def problem(unit: dict[str, Any], steps: list[StepRecord], **changes: Any) -> ProblemRecord:
    large = sum(each.writer == "large" for each in steps)
    values: dict[str, Any] = {
        "correct": True,
        "answer": "7",
        "steps": len(steps),
        "large_steps": large,
        "glimpsed_steps": sum(each.entropy is not None for each in steps),
        "small_tokens": 5 * (len(steps) - large),
        "large_tokens": 5 * large + 2,
        "small_passes": 5 * (len(steps) - large),
        "large_passes": 5 * large + 2,
        "rewritten_tokens": 0,
        "seconds": 0.1,
        "end_reason": "eos",
    }
    return ProblemRecord(**unit, **{**values, **changes})


def unit_of(arm: str, key: int, seed: int = 0, batch: int = 8) -> dict[str, Any]:
    return {"split": "report", "arm": arm, "seed": seed, "batch": batch, "problem": f"p{key:02d}"}


def plant(directory: Path, *, text: str = "fine", seeds: int = 2, **changes: Any) -> Path:
    """A whole evaluation: H_init tells wrong steps, varentropy does not; entropy beats random."""
    draw = np.random.default_rng(5)
    arms: list[tuple[ArmRecord, float, float]] = [
        (ArmRecord("small-alone", {}, None), 0.5, 0.0),
        (ArmRecord("large-alone", {}, None), 0.95, 1.0),
        (ArmRecord("random", {"share": 0.3}, 0.3), 0.5, 0.3),
        (ArmRecord("entropy", {"threshold": 0.7}, 0.3, 0.31, 2), 0.9, 0.3),
        (ArmRecord("entropy", {"threshold": 99.0}, None), 0.5, 0.0),
        (ArmRecord("margin", {"threshold": 1.0}, None), 0.95, 1.0),
    ]
    with RecordFile(directory, identity(**changes)) as file:
        file.append([session()])
        for arm, accuracy, share in arms:
            file.append([arm])
            label = " ".join([arm.rule, *(f"{k}={v!r}" for k, v in arm.parameters.items())])
            for seed in range(seeds):
                for key in range(PROBLEMS):
                    unit = unit_of(label, key, seed)
                    steps = [_planted(unit, i, draw, share, text) for i in range(STEPS)]
                    right = bool(draw.random() < accuracy)
                    file.append([*steps, problem(unit, steps, correct=right, answer=text)])
        for key in range(PROBLEMS if identity(**changes)["plan"]["probe_problems"] else 0):
            probes = [_probe(f"p{key:02d}", index, draw) for index in range(2)]
            file.append([*probes, ProbedRecord(0, f"p{key:02d}", STEPS, 2, 2)])
    return directory


def _planted(
    unit: dict[str, Any], index: int, draw: np.random.Generator, share: float, text: str
) -> StepRecord:
    right = bool(draw.random() < 0.8)
    alone = unit["arm"] == "large-alone"
    glimpse: dict[str, Any] = {
        "entropy": float(draw.normal(0.5 if right else 1.5, 0.3) ** 2),
        "varentropy": float(draw.random()),
        "max_prob": float(draw.random()),
        "margin": float(draw.random()),
    }
    return step(
        unit,
        index,
        writer="large" if draw.random() < share else "small",
        text=f"{text}\n\n",
        correct=right,
        agrees="01111" if alone else None,
        **(dict.fromkeys(glimpse) if alone else glimpse),
    )


def _probe(key: str, index: int, draw: np.random.Generator) -> ProbeRecord:
    small = bool(draw.random() < 0.5)
    return ProbeRecord(
        seed=0,
        problem=key,
        step=index,
        draw=0,
        entropy=float(draw.normal(0.5 if small else 1.5, 0.3) ** 2),
        max_prob=0.5,
        margin=0.1,
        varentropy=float(draw.random()),
        text="x",
        small_correct=small,
        large_correct=bool(draw.random() < 0.9),
        once_correct=bool(draw.random() < 0.6),
        step_entropy=0.3,
        step_perplexity=1.2,
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of records, read without the code under test."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def changed(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Rewrites the lines of a file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(change(lines)), encoding="utf-8")
