"""Answers in the shapes of OpenAI's: whole, and as chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from glimprouter.serve.choice import Choice
from glimprouter.serve.texts import Delta


def dump(value: Any) -> bytes:
    """JSON as UTF-8, whatever characters there are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def server_sent(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + dump(value) + b"\n\n"


class Answer(ABC):
    """The objects of one answer; subclasses know the endpoint."""

    prefix = ""
    whole = ""
    chunk = ""

    def __init__(self, model: str, prompt_tokens: int, *, trace: bool) -> None:
        """Of a request.

        Args:
            model: Name of the pair.
            prompt_tokens: Of all prompts, in the large model's tokens.
            trace: Whether each choice has its trace.
        """
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._trace = trace

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Tokens, also by writer."""
        written = sum(choice.total_tokens for choice in choices)
        small, large = (
            sum(choice.tokens[name] for choice in choices) for name in ("small", "large")
        )
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.reasoning_tokens for choice in choices)
            },
            "glimprouter": {
                "small_tokens": small,
                "large_tokens": large,
                "handoffs": sum(choice.handoffs for choice in choices),
            },
        }

    def complete(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The whole answer."""
        entries = [
            {
                "index": index,
                **self._text(choice),
                "logprobs": None,
                "finish_reason": choice.finish_reason,
                "glimprouter": choice.own_fields(trace=self._trace),
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._frame(self.whole, entries), "usage": self.usage(choices)}

    def part(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A chunk of one choice."""
        entry = {"index": index, **delta, "logprobs": None, "finish_reason": None, **more}
        return self._frame(self.chunk, [entry])

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        """The last chunk of a choice."""
        own = choice.own_fields(trace=self._trace)
        delta = self._end(choice)
        return self.part(index, delta, finish_reason=choice.finish_reason, glimprouter=own)

    def totals(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The chunk behind the last ones."""
        return {**self._frame(self.chunk, []), "usage": self.usage(choices)}

    def first(self) -> dict[str, Any] | None:
        """What a choice's first chunk says; None for nothing."""
        return None

    @abstractmethod
    def delta(self, delta: Delta) -> dict[str, Any] | None:
        """New text; None for none."""

    @abstractmethod
    def _text(self, choice: Choice) -> dict[str, Any]:
        """All of a choice, in a whole answer."""

    @abstractmethod
    def _end(self, choice: Choice) -> dict[str, Any]:
        """What the last chunk of a choice says beside its end."""


class ChatAnswer(Answer):
    """Of ``/v1/chat/completions``."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> dict[str, Any]:
        """The role."""
        return {"delta": {"role": "assistant", "content": ""}}

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        """Thinking and content apart."""
        named = (("reasoning_content", delta.reasoning), ("content", delta.content))
        new = {name: text for name, text in named if text}
        return {"delta": new} if new else None

    def _text(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.tool_calls:
            message["content"] = choice.content or None
            message["tool_calls"] = choice.tool_calls
        return {"message": message}

    def _end(self, choice: Choice) -> dict[str, Any]:
        calls = [{"index": place, **call} for place, call in enumerate(choice.tool_calls)]
        return {"delta": {"tool_calls": calls} if calls else {}}


class CompletionAnswer(Answer):
    """Of ``/v1/completions``."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        """All of it is text."""
        return {"text": delta.content} if delta.content else None

    def _text(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.content}

    def _end(self, choice: Choice) -> dict[str, Any]:
        return {"text": ""}
