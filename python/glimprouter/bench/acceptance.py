"""How often drafts hold, beside how often they could: 1 - total variation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import glimprouter as gr
from glimprouter.bench.harness import BenchmarkRow, Section

_WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.6, top-p 0.95": {"temperature": 0.6, "top_p": 0.95},
}
_RESULTS = 16  # all that is counted, as the bound is computed over the same
_DRAFTS = 8
GOAL_PASSES = 3.0  # of the large model, a large step


def overlap(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], filters: dict[str, Any]
) -> float:
    """1 - total variation of two distributions over the same vocabulary.

    Args:
        first: Logits ``[V]``.
        second: Likewise.
        filters: Temperature and filters, as :func:`glimprouter.sample` takes them.

    Returns:
        The most that two tokens can be equal in, whatever they are drawn with.
    """
    weights = []
    for row in (first, second):
        ids, probabilities = gr.nucleus(row, **filters)
        weights.append(dict(zip(ids.tolist(), probabilities.tolist(), strict=True)))
    return float(sum(min(share, weights[1].get(token, 0.0)) for token, share in weights[0].items()))


def _bound(
    pair: Any, prompts: Sequence[list[int]], results: Sequence[Any], filters: dict[str, Any]
) -> float:
    """Mean overlap over the tokens of the large model's steps."""
    import torch

    found = []
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([prompt + result.token_ids])
        with torch.inference_mode():
            logits = [model(ids).logits[0].float().numpy() for model in (pair.small, pair.large)]
        width = len(pair.tokenizer)
        start = len(prompt)
        for step in result.trace.steps:
            if step.model == "large":
                places = range(start - 1, start - 1 + step.num_tokens)
                small, large = (own[:, :width] for own in logits)
                found += [overlap(small[place], large[place], filters) for place in places]
            start += step.num_tokens
    return float(np.mean(found))


def accepted_beside_bound(
    pair: Any, routed: Callable[..., Any], prompts: Sequence[list[int]]
) -> Section:
    """A run for each way of sampling: the same results, and of them the large model's steps only.

    No answers are written, so whatever was drafted, and each pass of the large model, is of a step.

    Args:
        pair: Small and large model, and their tokenizer.
        routed: Makes a RoutedModel of a pair, given rows, drafts and options of the router.
        prompts: Ids, of which the first few are taken.
    """
    prompts = prompts[:_RESULTS]
    rows = []
    for name, filters in _WAYS.items():
        model = routed(pair, len(prompts), _DRAFTS, max_answer_tokens=0, **filters)
        start = time.perf_counter()
        results = model.generate(prompts, seeds=1)
        seconds = time.perf_counter() - start
        written = sum(len(result.token_ids) for result in results)
        bound = _bound(pair, prompts, results, filters)
        rows += rows_of(name, 1e6 * seconds / written, results, bound)
    title = f"drafts of the demo pair in steps of its large model, {_DRAFTS} at most, a token"
    return Section(title, rows)


def rows_of(
    name: str, microseconds: float, results: Sequence[Any], bound: float
) -> list[BenchmarkRow]:
    """What held beside the bound, and the passes of a large step.

    Args:
        name: Of the way of sampling.
        microseconds: A token.
        results: Without answers.
        bound: 1 - total variation over the tokens of their large steps.
    """
    counts = [result.counts["small"] for result in results]
    held = sum(own.accepted for own in counts) / max(1, sum(own.compared for own in counts))
    steps = sum(step.model == "large" for result in results for step in result.trace.steps)
    passes = sum(result.counts["large"].passes for result in results) / max(1, steps)
    return [
        BenchmarkRow(f"{name}: drafts that held", microseconds, value=held),
        BenchmarkRow(f"{name}: 1 - total variation", microseconds, value=bound),
        BenchmarkRow(
            f"{name}: large passes a large step",
            microseconds,
            value=passes,
            goal=f"at most {GOAL_PASSES:g}",
            met=steps > 0 and passes <= GOAL_PASSES,
        ),
    ]
