"""Tokens that a sequence may think and answer: what was asked for, or what the context leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glimprouter.config import DEFAULT_ANSWER_TOKENS, DEFAULT_THINK_TOKENS, RouterConfig
from glimprouter.hf.pair.prompts import EncodedPrompt

_ANSWER_SHARE = 4  # of the shorter context, one part in so many is for an answer nobody sized


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of one sequence, in tokens.

    Attributes:
        think: Budget of all steps, >= 1.
        answer: Budget of the answer, >= 0; reserved from the start.
        derived: Names of those that nobody set: ``"think"``, ``"answer"``.
    """

    think: int
    answer: int
    derived: tuple[str, ...]


def budgets_of(
    index: int,
    prompt: EncodedPrompt,
    config: RouterConfig,
    contexts: Mapping[str, int],
    closing: int,
    *,
    thinks: bool = True,
    asked: int = 0,
) -> Budgets:
    """The budgets of a prompt.

    A budget that was set is kept or refused. The answer's, where nobody set it, is a quarter of the
    shorter context, at most the published code's 2048; the thinking's is what prompt, answer and
    closing ids leave of both contexts, at most the published 8192.

    Args:
        index: Index of the prompt, for messages.
        prompt: Its ids for each model.
        config: With None for what was not set.
        contexts: Positions of each model, by name.
        closing: Ids that close the thinking.
        thinks: Whether an answer follows the thinking; else there is none unless it was asked for.
        asked: Tokens that the large model reads behind any step of the thinking, and drops.

    Raises:
        ValueError: The prompt leaves no room, or a budget that was set does not fit.
    """
    derived = []
    answer = config.max_answer_tokens
    if answer is None:
        derived.append("answer")
        answer = min(DEFAULT_ANSWER_TOKENS, min(contexts.values()) // _ANSWER_SHARE) * thinks
    lengths = {"small": len(prompt.small), "large": len(prompt.large)}
    after = answer + closing
    reserved = {"small": after, "large": max(after, asked)}
    rooms = {model: contexts[model] - lengths[model] - reserved[model] for model in contexts}
    name = min(rooms, key=lambda model: rooms[model])
    room, what = rooms[name], "answer" if reserved[name] == after else "policy's question"
    if room < 1:
        raise ValueError(
            f"prompt {index} has {lengths[name]} tokens; with {reserved[name]} reserved for the"
            f" {what} nothing is left of the {name} model's context of {contexts[name]}; shorten"
            " the prompt or lower max_answer_tokens"
        )
    think = config.max_think_tokens
    if think is None:
        derived.append("think")
        think = min(DEFAULT_THINK_TOKENS, room)
    elif think > room:
        raise ValueError(
            f"max_think_tokens={think} does not fit: prompt {index} has {lengths[name]} tokens, and"
            f" with {reserved[name]} reserved for the {what} {room} are left of the {name} model's"
            f" context of {contexts[name]}; lower it, or leave it unset"
        )
    return Budgets(think, answer, tuple(sorted(derived)))
