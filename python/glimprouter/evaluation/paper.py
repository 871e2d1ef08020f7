"""Figures of the paper, to stand beside ours and never to be taken for them.

Table 1 of arXiv 2601.05110: accuracy in per cent and seconds a problem, averages of four runs, with
Qwen3-4B as the small model, on A100 GPUs.
"""

from __future__ import annotations

__all__ = ["BENCHMARKS", "SOURCE", "TABLE_1"]

SOURCE = "arXiv 2601.05110, Table 1"
BENCHMARKS = ("AIME24", "AIME25", "GPQA-D", "LCBv5", "LCBv6")
TABLE_1: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {
    ("R1-Distill-32B", "large alone"): (
        (57.50, 197),
        (46.67, 220),
        (61.62, 176),
        (52.40, 219),
        (46.86, 214),
    ),
    ("R1-Distill-32B", "SpecReason"): (
        (57.50, 158),
        (49.17, 169),
        (63.76, 213),
        (53.59, 185),
        (47.57, 189),
    ),
    ("R1-Distill-32B", "GlimpRouter"): (
        (60.83, 143),
        (51.67, 163),
        (64.02, 129),
        (54.64, 160),
        (48.29, 160),
    ),
    ("Qwen3-32B", "large alone"): (
        (60.00, 220),
        (48.33, 231),
        (61.87, 194),
        (52.69, 249),
        (47.43, 241),
    ),
    ("Qwen3-32B", "GlimpRouter"): (
        (60.83, 145),
        (51.67, 147),
        (63.01, 142),
        (52.69, 162),
        (47.14, 165),
    ),
}
