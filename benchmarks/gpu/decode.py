"""Decoding one sequence: `generate` and our engine, against the time to read the weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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
RUNS = 3  # of which the median is taken


def _span_a_pass(model: Any, run: Callable[[], object]) -> float:
    """Seconds a decoding pass of one run, between the beginnings of its second and its last one."""
    starts: list[float] = []
    handle = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    try:
        run()
    finally:
        handle.remove()
    decoding = starts[1:]  # the first pass computes the prompt
    if len(decoding) < 2:
        raise RuntimeError(f"{len(decoding)} decoding passes were made; at least 2 are measured")
    return (decoding[-1] - decoding[0]) / (len(decoding) - 1)


def _milliseconds_a_token(clock: Clock, model: Any, run: Callable[[], object]) -> float:
    """Median over some runs, the prompt and what follows the last token left out."""
    run()
    spans = []
    for _ in range(RUNS):
        clock.synchronize()
        spans.append(_span_a_pass(model, run))
    return 1e3 * statistics.median(spans)


def measure_model(
    clock: Clock, name: str, context: int, tokens: int, bandwidth: float
) -> dict[str, Any]:
    """Milliseconds a token at a context, prefill left out.

    Args:
        clock: Of the device.
        name: Of the shape.
        context: Tokens of the prompt.
        tokens: Generated tokens, at least 3.
        bandwidth: Measured, bytes a second, read and written bytes counted.
    """
    model = build(name, clock.device)
    prompt = torch.randint(5, 290, (1, context), device=clock.device)
    tokenizer = AutoTokenizer.from_pretrained(small_path())  # its ids lie in every vocabulary

    def by_generate() -> None:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )

    def by_engine(engine: Any) -> Callable[[], object]:
        limits = {"max_think_tokens": tokens, "max_answer_tokens": 0, "temperature": 0.0}
        config = gr.RouterConfig(route="small", repetition_guard=False, **limits)
        routed = RoutedModel(model, model, tokenizer, config=config, engine=engine)
        return lambda: routed.generate([prompt[0].tolist()])

    floor = 1e3 * weight_bytes(model) / bandwidth
    result: dict[str, Any] = {
        "model": name,
        "context": context,
        "weight_bytes": weight_bytes(model),
        "floor_ms": floor,
        "hf_generate_ms": _milliseconds_a_token(clock, model, by_generate),
    }
    for engine in ("gather", "paged"):
        try:
            own = _milliseconds_a_token(clock, model, by_engine(engine))
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
