"""One sequence of a request on its way to the client."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
from typing import TYPE_CHECKING, Any

from glimprouter.serve.errors import RequestError
from glimprouter.serve.pair import PairFacts
from glimprouter.serve.texts import Delta, TextSplitter

if TYPE_CHECKING:
    from glimprouter.hf import Event, Result

_LENGTH = ("answer_budget", "budget")


class Choice:
    """Collects a sequence's events; what is new comes out as text.

    Attributes:
        tokens: Tokens delivered, by writer.
        reasoning_tokens: Those before the answer.
        finish_reason: As OpenAI has it; None until the text has ended.
        result: Once the sequence has ended.
    """

    def __init__(
        self,
        facts: PairFacts,
        splitter: TextSplitter,
        *,
        max_tokens: int | None,
        parses: bool = False,
    ) -> None:
        """Nothing is written yet.

        Args:
            facts: Of the pair.
            splitter: A fresh one.
            max_tokens: After so many the text is cut.
            parses: Whether content and tool calls come from the result's message, at the end.
        """
        self.tool_calls: list[dict[str, Any]] = []
        self.tokens = {"small": 0, "large": 0}
        self.handoffs = 0
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.result: Result | None = None
        self._reasoning: list[str] = []  # in pieces: texts are long, and pieces are many
        self._content: list[str] = []
        self._facts = facts
        self._splitter = splitter
        self._max_tokens = max_tokens
        self._parses = parses
        self._writer: str | None = None
        self._answering = False

    @property
    def reasoning(self) -> str:
        """All of the thinking so far."""
        return "".join(self._reasoning)

    @property
    def content(self) -> str:
        """All of the content so far."""
        return "".join(self._content)

    @property
    def total_tokens(self) -> int:
        """Tokens delivered."""
        return sum(self.tokens.values())

    def take(self, event: Event) -> Delta:
        """What an event adds; sets ``finish_reason`` where the text ends.

        Raises:
            RequestError: The engine ended the sequence with an error.
        """
        if event.kind == "done":
            self.result = event.result
            return self._end(event.result)
        if self.finish_reason is not None:
            return Delta()
        if event.kind == "answer_start":
            self._answering = True
            return self._kept(self._splitter.answer())
        if event.kind != "token" or event.text is None:
            return Delta()
        if event.token_id is None or event.model is None:
            return self._kept(self._splitter.push(event.text))
        self._count(event.model)
        special = self._facts.special_texts[event.model].get(event.token_id, "")
        delta = self._kept(self._splitter.push(event.text, special))
        if self._splitter.stopped:
            self.finish_reason = "stop"
        elif self.total_tokens == self._max_tokens:
            rest = self._kept(self._splitter.flush())
            delta = Delta(delta.reasoning + rest.reasoning, delta.content + rest.content)
            self.finish_reason = "length"
        return delta

    def _count(self, model: str) -> None:
        self.tokens[model] += 1
        self.reasoning_tokens += not self._answering
        self.handoffs += self._writer not in (None, model)
        self._writer = model

    def _kept(self, delta: Delta) -> Delta:
        self._reasoning.append(delta.reasoning)
        self._content.append(delta.content)
        return Delta(delta.reasoning, "") if self._parses else delta

    def _end(self, result: Result | None) -> Delta:
        assert result is not None
        trace = result.trace
        if trace.error is not None and self.finish_reason is None:
            raise RequestError(f"the sequence ended: {trace.error}", status=500, code="engine")
        delta = Delta()
        if self.finish_reason is None:
            if trace.end_reason == "cancelled":
                raise RequestError("the sequence was cancelled", status=503, code="engine")
            delta = self._kept(self._splitter.flush())
            self.finish_reason = "length" if trace.end_reason in _LENGTH else "stop"
        elif trace.end_reason == "eos" and trace.total_tokens == self.total_tokens:
            self.finish_reason = "stop"  # it had no more to say than was asked for
        if not self._parses:
            return delta
        message = result.message
        if trace.total_tokens > self.total_tokens:
            message = None  # of a longer text than was asked for
        if message is not None:
            self._content = [str(message.get("content") or "")]
            self.tool_calls = [_tool_call(call) for call in message.get("tool_calls") or ()]
            if self.tool_calls and self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
        return Delta(delta.reasoning, self.content)

    def end_without_result(self) -> Delta:
        """What is left to say where the text had ended before its sequence was lost."""
        return Delta("", self.content) if self._parses else Delta()

    def own_fields(self, *, trace: bool) -> dict[str, Any]:
        """What only this server says, under ``glimprouter``."""
        if self.result is None:
            return {"handoffs": self.handoffs}
        own = self.result.trace
        fields: dict[str, Any] = {
            "seed": own.seed,
            "substream": own.substream,
            "threshold": _finite(own.threshold),
            "end_reason": own.end_reason,
            "steps": len(own.steps),
            "large_steps": sum(step.model == "large" for step in own.steps),
            "handoffs": self.handoffs,
        }
        if trace:
            record = dataclasses.asdict(own)
            for part in (record, *record["steps"]):
                part["threshold"] = _finite(part["threshold"])
            fields["trace"] = record
        return fields


def _finite(threshold: float) -> float | str:
    """JSON has neither infinity nor NaN."""
    return threshold if math.isfinite(threshold) else str(threshold)


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call of a response template as OpenAI has it: the arguments are text."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id") or f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": arguments},
    }
