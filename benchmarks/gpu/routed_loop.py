"""A chain of thought with recorded routes and step lengths, against the large model alone.

Step lengths follow what was recorded of a 1.5 B model (median 19 tokens, mean 27.8, 6 to 141) and a
quarter of the steps goes to the large model, the share that the paper's authors recommend; both are
drawn from a fixed seed. Every step begins with a glimpse, and a model that is asked again first
catches up with what the other wrote.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from clock import Clock
from models import build
from transformers import DynamicCache

import glimprouter as gr

LARGE_SHARE = 0.25
MEDIAN_TOKENS, SPREAD = 19.0, 0.87  # of a log-normal with mean 27.8
SHORTEST, LONGEST = 6, 141


def recorded_steps(count: int, seed: int = 7) -> list[tuple[str, int]]:
    """Writer and number of tokens of each step.

    Args:
        count: Number of steps.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    lengths = np.exp(np.log(MEDIAN_TOKENS) + SPREAD * generator.standard_normal(count))
    large = generator.random(count) < LARGE_SHARE
    tokens = np.clip(np.round(lengths), SHORTEST, LONGEST).astype(int).tolist()
    return [("large" if hard else "small", n) for hard, n in zip(large, tokens, strict=True)]


class Writer:
    """One model with its cache, which remembers how much of the text it has computed."""

    def __init__(self, model: Any):
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.computed = 0

    def logits(self, text: torch.Tensor, length: int) -> torch.Tensor:
        """Logits ``[1, V]`` behind the first ``length`` ids, computing only the unseen ones."""
        unseen = text[:, self.computed : length]
        self.computed = length
        return self.model(input_ids=unseen, past_key_values=self.cache, logits_to_keep=1).logits[
            :, -1
        ]


def write(
    small: Writer | None, large: Writer, steps: list[tuple[str, int]], prompt: torch.Tensor
) -> int:
    """Plays the steps; returns the number of tokens. Without a small model the large one alone."""
    total = prompt.shape[1] + sum(tokens for _, tokens in steps)
    text = torch.zeros((1, total), dtype=prompt.dtype, device=prompt.device)
    text[:, : prompt.shape[1]] = prompt
    length = prompt.shape[1]
    for writer_name, tokens in steps:
        logits = None
        writer = large
        if small is not None:
            logits = small.logits(text, length)
            gr.glimpse(logits).entropy.item()  # the decision is awaited, whatever was recorded
            writer = large if writer_name == "large" else small
            logits = logits if writer is small else None
        for _ in range(tokens):
            if logits is None:
                logits = writer.logits(text, length)
            text[:, length] = gr.sample(logits, temperature=0.6, top_p=0.95, position=length)
            length += 1
            logits = None
    return length - prompt.shape[1]


def run(clock: Clock, small_name: str, large_name: str, count: int) -> dict[str, Any]:
    """Seconds of the routed chain and of the large model alone over the same tokens."""
    small, large = build(small_name, clock.device), build(large_name, clock.device)
    steps = recorded_steps(count)
    prompt = torch.randint(5, 290, (1, 200), device=clock.device)
    result: dict[str, Any] = {
        "small": small_name,
        "large": large_name,
        "steps": count,
        "large_steps": sum(writer == "large" for writer, _ in steps),
    }
    with torch.inference_mode():
        write(Writer(small), Writer(large), steps[:2], prompt)
        for name, first in (("routed_seconds", small), ("large_alone_seconds", None)):
            clock.synchronize()
            start = time.perf_counter()
            writer = None if first is None else Writer(first)
            result["tokens"] = write(writer, Writer(large), steps, prompt)
            clock.synchronize()
            result[name] = time.perf_counter() - start
    result["speedup"] = result["large_alone_seconds"] / result["routed_seconds"]
    return result
