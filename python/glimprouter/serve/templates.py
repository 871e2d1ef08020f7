"""What chat templates show of a chat: they are asked, by rendering it with two different values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # of transformers, not of jinja
_QUESTION = {"role": "user", "content": "question"}


def _call(name: str) -> dict[str, Any]:
    return {"id": "call00001", "type": "function", "function": {"name": name, "arguments": {}}}


def _chat_of(role: str, turn: dict[str, Any]) -> list[dict[str, Any]]:
    """A turn where templates expect its role."""
    own = {"role": role, **turn}
    if role == "tool":
        called = {"role": "assistant", "content": "", "tool_calls": [_call("f")]}
        return [_QUESTION, called, {**own, "tool_call_id": "call00001"}]
    before = {"user": [], "system": [], "developer": []}.get(role, [_QUESTION])
    return [*before, own, *([] if role == "user" else [_QUESTION])]


class Templates:
    """The chat templates of a pair."""

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        """Of its tokenizers; nothing is rendered yet."""
        self._tokenizers = list(tokenizers)
        self.show_role = cache(self._show_role)
        self.show_name = cache(self._show_name)
        self.show_calls = cache(self._show_calls)
        self.show_tools = cache(self._show_tools)
        self._options = cache(self._read_options)

    def _show_role(self, role: str) -> bool:
        """Whether what a role says reaches both models."""
        return self._differ(lambda word: (_chat_of(role, {"content": word}), None))

    def _show_name(self, role: str) -> bool:
        """Whether the name of who speaks does."""
        return self._differ(lambda word: (_chat_of(role, {"content": "text", "name": word}), None))

    def _show_calls(self) -> bool:
        """Whether tool calls of earlier answers do."""
        return self._differ(
            lambda word: (_chat_of("assistant", {"content": "", "tool_calls": [_call(word)]}), None)
        )

    def _show_tools(self) -> bool:
        """Whether the tools that there are do."""

        def described(word: str) -> tuple[list[dict[str, Any]], list[Any]]:
            schema = {"type": "object", "properties": {}}
            function = {"name": word, "description": word, "parameters": schema}
            return [_QUESTION], [{"type": "function", "function": function}]

        return self._differ(described)

    def know_option(self, name: str) -> bool:
        """Whether a variable of this name is read by both, and set by neither."""
        return name in self._options()

    def _read_options(self) -> set[str]:
        return set.intersection(*map(_variables, self._tokenizers))

    def _differ(self, make: Callable[[str], tuple[list[dict[str, Any]], list[Any] | None]]) -> bool:
        """Whether a word changes what each template renders; one that fails says why later."""

        def rendered(tokenizer: Any, word: str) -> str:
            chat, tools = make(word)
            return str(
                tokenizer.apply_chat_template(
                    chat, tools=tools, tokenize=False, add_generation_prompt=True
                )
            )

        for tokenizer in self._tokenizers:
            try:
                if rendered(tokenizer, "wordone") == rendered(tokenizer, "wordtwo"):
                    return False
            except Exception:  # what a template raises is its own
                continue
        return True


def _variables(tokenizer: Any) -> set[str]:
    """Names that a chat template takes from outside."""
    from jinja2 import Environment, TemplateError, meta

    template = getattr(tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [template or ""]
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    found: set[str] = set()
    for text in texts:
        try:
            found |= meta.find_undeclared_variables(
                environment.parse(_GENERATION.sub("", str(text)))
            )
        except TemplateError:
            continue  # it will not render either
    return found
