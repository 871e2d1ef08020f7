"""Chains that one model of a pair writes alone, each told of as it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from glimprouter.config import ModelName

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel


def write_alone(
    model: RoutedModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    writer: ModelName,
    finished: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Chains and answers of one model, in the order of the prompts.

    Args:
        model: A pair.
        prompts: The users' messages, in flight together.
        seeds: One a prompt.
        writer: Of all of each chain.
        finished: Called with each result once it is there, and the index of its prompt.

    Raises:
        TypeError: ``prompts`` is not a list of prompts.
        ValueError: A prompt that leaves no room for the answer, seeds of another number.
        RuntimeError: The model gave invalid logits.
    """
    if not prompts:
        return []  # a run without prompts would plan memory for those to come
    found: dict[int, Result] = {}
    for event in model.stream(prompts, list(seeds), route=writer, answer_model=writer):
        if event.result is not None:
            found[event.sequence] = event.result
            if finished is not None:
                finished(event.sequence, event.result)
    return [found[place] for place in range(len(prompts))]
