"""Where the sequences of a pair stand behind their prompts."""

from __future__ import annotations

from collections.abc import Sequence

from glimprouter.boundary import SequenceStart, StepBoundary
from glimprouter.hf.pair.budgets import Budgets
from glimprouter.hf.pair.prompts import EncodedPrompt
from glimprouter.hf.pair.text import MODELS


def start_of(
    index: int, prompt: EncodedPrompt, boundaries: Sequence[StepBoundary], budgets: Budgets
) -> SequenceStart:
    """Whether a prompt leaves off before its thinking, within it, or behind it.

    Args:
        index: Index of the prompt, for messages.
        prompt: Its ids for each model.
        boundaries: Of the small and the large model.
        budgets: Of the prompt.

    Raises:
        ValueError: The two models' prompts leave off at different places, or nothing is left to
            write.
    """
    pairs = zip(MODELS, boundaries, strict=True)
    starts = {name: boundary.read_prompt(prompt.opening(name)) for name, boundary in pairs}
    small, large = starts.values()
    if small.answering != large.answering:
        closed, opened = ("small", "large") if small.answering else ("large", "small")
        raise ValueError(
            f"prompt {index} is past its thinking for the {closed} model, and not for the {opened}"
            " one: their chat templates close it differently; pass both the same by"
            " chat_template_kwargs, or ids for each as an EncodedPrompt"
        )
    if small.answering and budgets.answer == 0:
        raise ValueError(
            f"prompt {index} is past its thinking and max_answer_tokens is 0: nothing is left to"
            " write"
        )
    return small
