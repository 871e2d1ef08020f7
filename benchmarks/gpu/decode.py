"""Decoding one sequence: `generate` and our engine, against the time to read the weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from clock import Clock
from models import build, weight_bytes
from transformers import AutoTokenizer

import glimprouter as gr
from glimprouter.demo_pair import small_path
from glimprouter.hf import RoutedModel

# Times of the floor that the project set itself.
GOALS = {"4B": 1.6, "32B": 1.25}


def _milliseconds_a_token(clock: Clock, run: Any, tokens: int) -> float:
    run(2)
    clock.synchronize()
    start = time.perf_counter()
    run(1)
    clock.synchronize()
    first = time.perf_counter() - start
    start = time.perf_counter()
    run(tokens)
    clock.synchronize()
    return 1e3 * (time.perf_counter() - start - first) / (tokens - 1)


def measure_model(
    clock: Clock, name: str, context: int, tokens: int, bandwidth: float
) -> dict[str, Any]:
    """Milliseconds a token at a context, prefill taken off.

    Args:
        clock: Of the device.
        name: Of the shape.
        context: Tokens of the prompt.
        tokens: Generated tokens.
        bandwidth: Measured, bytes a second, read and written bytes counted.
    """
    model = build(name, clock.device)
    prompt = torch.randint(5, 290, (1, context), device=clock.device)
    tokenizer = AutoTokenizer.from_pretrained(small_path())  # its ids lie in every vocabulary

    def by_generate(count: int) -> None:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    def by_engine(engine: str) -> Any:
        def run(count: int) -> None:
            limits = {"max_think_tokens": count, "max_answer_tokens": 0, "temperature": 0.0}
            config = gr.RouterConfig(route="small", repetition_guard=False, **limits)
            RoutedModel(model, model, tokenizer, config=config, engine=engine).generate(
                [prompt[0].tolist()]
            )

        return run

    floor = 1e3 * weight_bytes(model) / bandwidth
    result: dict[str, Any] = {
        "model": name,
        "context": context,
        "weight_bytes": weight_bytes(model),
        "floor_ms": floor,
        "hf_generate_ms": _milliseconds_a_token(clock, by_generate, tokens),
    }
    for engine in ("gather", "paged"):
        try:
            own = _milliseconds_a_token(clock, by_engine(engine), tokens)
        except (ValueError, RuntimeError) as error:
            result[f"{engine}_refused"] = str(error)
            continue
        result[f"{engine}_ms"] = own
        result[f"{engine}_times_floor"] = own / floor
    result["goal_times_floor"] = GOALS.get(name)
    return result


def run(clock: Clock, names: tuple[str, ...], context: int, tokens: int) -> dict[str, Any]:
    """Every named shape, one after the other."""
    bandwidth = clock.copy_bandwidth()
    rows = []
    for name in names:
        with torch.inference_mode():
            rows.append(measure_model(clock, name, context, tokens, bandwidth))
        if clock.is_cuda:
            torch.cuda.empty_cache()
    return {"copy_bytes_per_second": bandwidth, "rows": rows}
