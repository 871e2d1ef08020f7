"""Prompts in the shapes of real chat templates: thinking on and off, turns, system, tools."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from chat_templates import SHAPES, widened
from glimprouter.hf import FORMATS, RoutedModel
from glimprouter.hf.pair.thinking import formats_of
from hf_pairs import random_pair

pytestmark = pytest.mark.both_engines("paged")

THINK, ANSWER = 12, 5
QUESTION = {"role": "user", "content": "What ends a thought?"}
CALLS = [{"name": "look_up"}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]


@cache
def routed(shape: str) -> RoutedModel:
    pair, tokenizer = random_pair("qwen3"), SHAPES[shape].tokenizer
    spare = len(tokenizer) - pair.small.config.vocab_size
    config = pair.routed(max_think_tokens=THINK, max_answer_tokens=ANSWER).config
    models = (widened(model, spare) for model in (pair.small, pair.large))
    return RoutedModel(*models, tokenizer, config)


def chats(shape: str) -> dict[str, list[dict[str, Any]]]:
    """One turn, a system prompt, turns that have thought, and turns that have called tools."""
    format = FORMATS[SHAPES[shape].format]
    thought = f"{format.start}Hm.{format.end}The end."
    return {
        "one": [QUESTION],
        "system": [{"role": "system", "content": "Be brief."}, QUESTION],
        "turns": [QUESTION, {"role": "assistant", "content": thought}, QUESTION],
        "calls": [
            QUESTION,
            {"role": "assistant", "content": thought, "tool_calls": CALLS},
            {"role": "tool", "content": f"a {format.end} for you"},
        ],
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_the_format_is_found(shape: str) -> None:
    tokenizer = SHAPES[shape].tokenizer
    format = FORMATS[SHAPES[shape].format]
    assert formats_of(SHAPES[shape].format, [tokenizer, tokenizer]) == [format, format]
    assert routed(shape).boundary.close_ids


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("chat", ["one", "system", "turns", "calls"])
@pytest.mark.parametrize("shape", SHAPES)
def test_thinking_is_open(shape: str, chat: str, tools: Any) -> None:
    """Whatever turns, users and tools have said: the budget closes it, and an answer follows."""
    model = routed(shape)
    options = {} if tools is None else {"tools": tools}
    [result] = model.generate([chats(shape)[chat]], chat_template_kwargs=options)
    close = model.boundary.close_ids
    assert result.trace.steps
    assert result.token_ids[THINK : THINK + len(close)] == close
    assert result.trace.answer_tokens == ANSWER


@pytest.mark.parametrize("chat", ["one", "system", "turns", "calls"])
@pytest.mark.parametrize("shape", [name for name, own in SHAPES.items() if own.closed is not None])
def test_thinking_is_switched_off(shape: str, chat: str) -> None:
    options = {"enable_thinking": False, "tools": TOOLS}
    [result] = routed(shape).generate([chats(shape)[chat]], chat_template_kwargs=options)
    assert result.trace.steps == []
    assert result.trace.answer_tokens == len(result.token_ids) == ANSWER
