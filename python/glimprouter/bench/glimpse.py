"""Greedy glimpse: one pass over a row against a chain of torch operations for the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import glimprouter as gr
from glimprouter.bench.harness import (
    BenchmarkRow,
    Section,
    Settings,
    make_logits,
    measure,
    one_torch_thread,
)

if TYPE_CHECKING:
    import torch

LEAST_SPEEDUP = 10.0
MOST_TIMES_FLOOR = 6.0
LEAST_THREAD_SPEEDUP = 1.7


def torch_chain(
    logits: torch.Tensor, delimiter_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns entropy, token and whether it is a delimiter, in the obvious torch operations."""
    import torch

    log_probs = torch.log_softmax(logits, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    token = logits.argmax(dim=-1)
    return entropy, token, torch.isin(token, delimiter_ids)


def _one_row(kind: str, dtype: str, settings: Settings) -> list[BenchmarkRow]:
    import torch

    logits = make_logits(kind, dtype, 1, settings.vocabulary)
    delimiter_ids = torch.arange(100, 116)
    timings = measure(
        {
            "floor": lambda: torch.sum(logits),
            "glimpse": lambda: gr.glimpse(logits),
            "chain": lambda: torch_chain(logits, delimiter_ids),
        },
        settings,
    )
    bytes_read = logits.numel() * logits.element_size()
    speedup = timings.ratio("chain", "glimpse")
    times_floor = timings.ratio("glimpse", "floor")

    def row(name: str, key: str, label: str) -> BenchmarkRow:
        ours = key == "glimpse"
        microseconds = timings.microseconds(key)
        return BenchmarkRow(
            name=f"{label}: {name}",
            microseconds=microseconds,
            gigabytes_per_second=bytes_read / microseconds / 1e3,
            times_floor=timings.ratio(key, "floor"),
            speedup=speedup if ours else None,
            goal=f"speed-up >= {LEAST_SPEEDUP:g}, sum <= {MOST_TIMES_FLOOR:g}" if ours else None,
            met=speedup >= LEAST_SPEEDUP and times_floor <= MOST_TIMES_FLOOR if ours else None,
        )

    label = f"{kind} {dtype}"
    return [
        row("glimpse", "glimpse", label),
        row("torch.sum", "floor", label),
        row("torch chain", "chain", label),
    ]


def _threads(settings: Settings) -> list[BenchmarkRow]:
    logits = make_logits("normal", "float32", settings.batch, settings.vocabulary)
    before = gr.get_num_threads()

    def with_threads(count: int) -> None:
        gr.set_num_threads(count)
        gr.glimpse(logits)

    try:
        timings = measure(
            {"one": lambda: with_threads(1), "two": lambda: with_threads(2)}, settings
        )
    finally:
        gr.set_num_threads(before)
    bytes_read = logits.numel() * logits.element_size()
    speedup = timings.ratio("one", "two")
    one, two = timings.microseconds("one"), timings.microseconds("two")
    return [
        BenchmarkRow("one thread", one, bytes_read / one / 1e3),
        BenchmarkRow(
            "two threads",
            two,
            bytes_read / two / 1e3,
            speedup=speedup,
            goal=f"speed-up >= {LEAST_THREAD_SPEEDUP:g}",
            met=speedup >= LEAST_THREAD_SPEEDUP,
        ),
    ]


def run(settings: Settings) -> list[Section]:
    """Measures one row of each kind and type, and a batch on one and two threads."""
    with one_torch_thread():
        rows = [
            row
            for kind in ("normal", "peaked")
            for dtype in ("float32", "bfloat16")
            for row in _one_row(kind, dtype, settings)
        ]
        threads = _threads(settings)
    return [
        Section(f"greedy glimpse, B=1, V={settings.vocabulary}, one thread", rows),
        Section(f"greedy glimpse, B={settings.batch}, V={settings.vocabulary}", threads),
    ]
