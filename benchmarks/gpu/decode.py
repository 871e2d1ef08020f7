"""Decoding one sequence: `generate` and our engine, against the time to read the weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from clock import Clock
from models import build, weight_bytes
from transformers import AutoTokenizer

import glimprouter as gr
from glimprouter import kv
from glimprouter.demo_pair import small_path
from glimprouter.hf import RoutedModel, Run

# Times of the floor that the project set itself; and milliseconds a token, which belong to one GPU.
GOALS = {"4B": 1.6, "32B": 1.25}
GOAL_DEVICE = "H200"
GOALS_MS = {"4B": 3.2, "32B": 18.0}
# Our own, by the name in the result: options of `RoutedModel`, and the loads of attention.
ENGINES: dict[str, dict[str, Any]] = {
    "gather": {"engine": "gather"},
    "paged": {"engine": "paged", "execution": "eager"},
    "graphs": {"engine": "paged", "execution": "graphs"},
    "staged": {"engine": "paged", "execution": "graphs", "loads": "staged"},
    "fused": {"engine": "paged", "execution": "graphs", "fused_layers": True},
    "fused_staged": {
        "engine": "paged",
        "execution": "graphs",
        "fused_layers": True,
        "loads": "staged",
    },
}
COMPILED: dict[str, dict[str, Any]] = {"compiled": {"engine": "paged", "execution": "compiled"}}
RUNS = 3  # of which the median is taken


def _starts_of_passes(model: Any, run: Callable[[], object]) -> list[float]:
    """Seconds at which the forward passes of one run began, the prompt's left out."""
    starts: list[float] = []
    handle = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    try:
        run()
    finally:
        handle.remove()
    return starts[1:]


def _arrivals(run: Run) -> list[float]:
    """Seconds at which the tokens of one run came, the first one left out."""
    return [time.perf_counter() for event in run if event.kind == "token"][1:]


def _milliseconds_a_token(clock: Clock, times: Callable[[], list[float]]) -> float:
    """Median over some runs, after one that does not count, of the time from token to token."""
    times()
    spans = []
    for _ in range(RUNS):
        clock.synchronize()
        tokens = times()
        if len(tokens) < 2:
            raise RuntimeError(f"{len(tokens)} tokens were decoded; at least 2 are measured")
        spans.append((tokens[-1] - tokens[0]) / (len(tokens) - 1))
    return 1e3 * statistics.median(spans)


def goal_of(name: str, device: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The goal in milliseconds a token, and whether the fastest of our engines meets it.

    Args:
        name: Of the shape: others than those of `GOALS_MS` have no goal.
        device: Its name. On another GPU than the goal's, nothing is met or missed.
        result: What was measured.
    """
    if name not in GOALS_MS:
        return {}
    known = {own: result[f"{own}_ms"] for own in (*ENGINES, *COMPILED) if f"{own}_ms" in result}
    goal = {"goal_ms": GOALS_MS[name], "goal_device": GOAL_DEVICE, "fastest": None, "met": None}
    if known:
        goal["fastest"] = min(known, key=known.__getitem__)
        if GOAL_DEVICE in device:
            goal["met"] = known[goal["fastest"]] <= GOALS_MS[name]
    return goal


def measure_model(
    clock: Clock,
    name: str,
    context: int,
    tokens: int,
    bandwidth: float,
    engines: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Milliseconds a token at a context, prefill left out.

    Args:
        clock: Of the device.
        name: Of the shape.
        context: Tokens of the prompt.
        tokens: Generated tokens, at least 3.
        bandwidth: Measured, bytes a second, read and written bytes counted.
        engines: As `ENGINES`.
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

    def by_engine(**options: Any) -> Callable[[], list[float]]:
        limits = {"max_think_tokens": tokens, "max_answer_tokens": 0, "temperature": 0.0}
        config = gr.RouterConfig(route="small", repetition_guard=False, **limits)
        routed = RoutedModel(model, model, tokenizer, config=config, max_sequences=1, **options)
        return lambda: _arrivals(routed.stream([prompt[0].tolist()]))

    floor = 1e3 * weight_bytes(model) / bandwidth
    result: dict[str, Any] = {
        "model": name,
        "context": context,
        "weight_bytes": weight_bytes(model),
        "floor_ms": floor,
        "hf_generate_ms": _milliseconds_a_token(
            clock, lambda: _starts_of_passes(model, by_generate)
        ),
    }
    for engine, options in engines.items():
        others = {key: value for key, value in options.items() if key != "loads"}
        before = kv.set_attention_loads(options.get("loads", "direct"))
        try:
            own = _milliseconds_a_token(clock, by_engine(**others))
        except (ValueError, RuntimeError) as error:
            result[f"{engine}_refused"] = str(error)
            continue
        finally:
            kv.set_attention_loads(before)
        result[f"{engine}_ms"] = own
        result[f"{engine}_times_floor"] = own / floor
    result["goal_times_floor"] = GOALS.get(name)
    return result | goal_of(name, clock.name, result)


def run(
    clock: Clock,
    names: tuple[str, ...],
    context: int,
    tokens: int,
    engines: dict[str, dict[str, Any]] = ENGINES,
) -> dict[str, Any]:
    """Every named shape, one after the other."""
    bandwidth = clock.copy_bandwidth()
    rows = []
    for name in names:
        rows.append(measure_model(clock, name, context, tokens, bandwidth, engines))
        if clock.is_cuda:
            torch.cuda.empty_cache()
    return {"copy_bytes_per_second": bandwidth, "rows": rows}
