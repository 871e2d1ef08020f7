"""SPIRIT (arXiv 2502.13260): which steps of a chain its answer does not miss.

A step is unimportant where the perplexity of the answer hardly rises without it:
``ln PPL(answer | chain without the step) - ln PPL(answer | chain)``. The few-shot form needs no
training; fine-tuning on pruned chains is the source's other form, and not done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glimprouter.chains.forward import last_logits


@dataclass(frozen=True, slots=True)
class StepImportance:
    """One step.

    Attributes:
        index: In the chain.
        rise: Of the answer's log-perplexity without it, nats a token; negative where it harms.
    """

    index: int
    rise: float


def step_importance(
    model: Any, prompt: Sequence[int], steps: Sequence[Sequence[int]], answer: Sequence[int]
) -> list[StepImportance]:
    """How much the answer misses each step.

    Args:
        model: A causal language model of transformers.
        prompt: Ids before the chain; not empty.
        steps: Ids of each step, delimiters included.
        answer: Ids behind the chain, from the end of the thinking on; not empty.

    Raises:
        ValueError: An empty prompt, or an empty answer.
    """
    if not prompt or not answer:
        raise ValueError("prompt and answer must hold at least one id each")
    whole = _log_perplexity(model, prompt, steps, answer)
    return [
        StepImportance(
            index,
            _log_perplexity(model, prompt, [*steps[:index], *steps[index + 1 :]], answer) - whole,
        )
        for index in range(len(steps))
    ]


def _log_perplexity(
    model: Any, prompt: Sequence[int], steps: Sequence[Sequence[int]], answer: Sequence[int]
) -> float:
    import torch

    chain = [token for step in steps for token in step]
    ids = torch.tensor([[*prompt, *chain, *answer]], device=model.device)
    with torch.inference_mode():
        logits = last_logits(model, ids, len(answer) + 1)[:-1].double()
    targets = ids[0, -len(answer) :]
    return float(torch.nn.functional.cross_entropy(logits, targets))


def pruned(steps: Sequence[str], importance: Sequence[StepImportance], most: float) -> list[str]:
    """The chain without its unimportant steps, in order.

    Args:
        steps: Texts.
        importance: Of the same steps.
        most: Steps whose absence raises the log-perplexity by at most so much are dropped, nats.

    Raises:
        ValueError: Another number of steps.
    """
    if len(steps) != len(importance):
        raise ValueError(f"{len(steps)} steps have {len(importance)} importances")
    return [steps[each.index] for each in importance if each.rise > most]
