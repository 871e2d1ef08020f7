"""Made-up traces and files of the published client, for the tests of what shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import glimprouter as gr


def step(index: int, model: str = "small", **fields: Any) -> gr.TraceStep:
    values: dict[str, Any] = {
        "entropy": 1.5 if model == "large" else 0.25,
        "threshold": 1.0,
        "text": f"Step number {index}.\n\n",
        "num_tokens": 10 + index,
        "seconds": 0.01,
        "end_reason": "delimiter",
    }
    return gr.TraceStep(index=index, model=model, **{**values, **fields})


def trace(count: int = 4, **fields: Any) -> gr.Trace:
    """Every third step by the large model, then an answer and three closing ids."""
    steps = [step(index, "large" if index % 3 == 2 else "small") for index in range(count)]
    values: dict[str, Any] = {
        "prompt": "Why?",
        "seed": 7,
        "think_limit": 512,
        "steps": steps,
        "answer": "Because.",
        "answer_tokens": 5,
        "answer_seconds": 0.5,
        "end_reason": "eos",
        **fields,
    }
    tokens = sum(step.num_tokens for step in values["steps"]) + values["answer_tokens"] + 3
    return gr.Trace(total_tokens=tokens, **values)


def client_record(index: int, model: str, text: str, tokens: int, **fields: Any) -> dict[str, Any]:
    """One object of a result of the published client, whose field order this has."""
    large = model == "large"
    return {
        "step_id": index,
        "step_str": text,
        "small_model_step": None if large else text,
        "num_output_tokens_small": None if large else tokens,
        "score": 1.5 if large else 0.25,
        "base_model_step": text if large else None,
        "num_output_tokens_base": tokens if large else None,
        "final_num_output_tokens": tokens,
        "justification": "So",
        **fields,
    }


def client_records() -> list[dict[str, Any]]:
    """Three steps, the last with the stop reason, and the answer."""
    return [
        client_record(0, "small", "Let x = 4.", 6),
        client_record(1, "large", "Then x² = 16.", 9, score=1.25),
        client_record(2, "small", "Done.</think>", 4, score=0.75, stop_reason="finished"),
        client_record(3, "large", "\\boxed{16}", 7, score=None, justification=None, answer=True),
    ]


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=4), encoding="utf-8")
    return path
