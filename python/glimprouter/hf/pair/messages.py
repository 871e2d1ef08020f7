"""What was generated as a message of a chat: its thinking, its tool calls, its content."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any


def schemas_of(tools: Sequence[Any] | None) -> list[Any] | None:
    """Tools as JSON schemas, which a saved sequence can hold; functions have one of their own.

    Args:
        tools: As ``apply_chat_template(tools=)`` takes them.
    """
    if not tools:
        return None
    from transformers.utils.chat_template_utils import get_json_schema

    return [get_json_schema(tool) if inspect.isroutine(tool) else tool for tool in tools]


def message_of(
    tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], tools: Sequence[Any] | None
) -> dict[str, Any] | None:
    """Generated ids as a message, by the tokenizer's response template; None where it has none.

    Args:
        tokenizer: Of transformers.
        prompt: What came before, in its ids.
        ids: What was generated.
        tools: JSON schemas of the tools that the prompt names: arguments get their types by them.
    """
    if not ids or getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        message = tokenizer.parse_response(list(ids), prefix=list(prompt), tools=tools)
    except Exception as failure:  # whatever a template makes of a text that is cut off, or wrong
        warnings.warn(
            f"the tokenizer's response template cannot read what was generated ({failure}); the"
            " result has it as text",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return {"role": "assistant", **message}
