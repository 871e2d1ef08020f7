"""Sampling with temperature 0.6 and top-p 0.95 against torch's own chain for it."""

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

TEMPERATURE = 0.6
TOP_P = 0.95
LEAST_SPEEDUP = 25.0


def torch_chain(logits: torch.Tensor) -> torch.Tensor:
    """Returns one token a row: temperature, sort, softmax, prefix sums, mask, multinomial."""
    import torch

    scaled = logits / TEMPERATURE
    ordered, ids = torch.sort(scaled, dim=-1, descending=True)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before >= TOP_P, 0.0)
    return ids.gather(-1, torch.multinomial(kept, num_samples=1))


def _one_row(kind: str, dtype: str, settings: Settings) -> list[BenchmarkRow]:
    import torch

    logits = make_logits(kind, dtype, 1, settings.vocabulary)
    position = iter(range(1 << 62))  # a fresh draw a call, as in decoding

    timings = measure(
        {
            "floor": lambda: torch.sum(logits),
            "sample": lambda: gr.sample(
                logits, temperature=TEMPERATURE, top_p=TOP_P, seed=1, position=next(position)
            ),
            "chain": lambda: torch_chain(logits),
        },
        settings,
    )
    bytes_read = logits.numel() * logits.element_size()
    speedup = timings.ratio("chain", "sample")
    ours, chain = timings.microseconds("sample"), timings.microseconds("chain")
    return [
        BenchmarkRow(
            name=f"{kind} {dtype}: sample",
            microseconds=ours,
            gigabytes_per_second=bytes_read / ours / 1e3,
            times_floor=timings.ratio("sample", "floor"),
            speedup=speedup,
            goal=f"speed-up >= {LEAST_SPEEDUP:g}",
            met=speedup >= LEAST_SPEEDUP,
        ),
        BenchmarkRow(
            name=f"{kind} {dtype}: torch chain",
            microseconds=chain,
            gigabytes_per_second=bytes_read / chain / 1e3,
            times_floor=timings.ratio("chain", "floor"),
        ),
    ]


def run(settings: Settings) -> list[Section]:
    """Measures one row of each kind and type."""
    with one_torch_thread():
        rows = [
            row
            for kind in ("normal", "peaked")
            for dtype in ("float32", "bfloat16")
            for row in _one_row(kind, dtype, settings)
        ]
    title = f"temperature {TEMPERATURE}, top-p {TOP_P}, B=1, V={settings.vocabulary}, one thread"
    return [Section(title, rows)]
