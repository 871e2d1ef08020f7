"""What the front of a server needs to know of a pair: how prompts are read, and text is marked."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from glimprouter.config import RouterConfig
from glimprouter.serve.errors import RequestError, unsupported, without_numbers
from glimprouter.serve.requests import ChatRequest, CompletionRequest, Message
from glimprouter.serve.templates import Templates

if TYPE_CHECKING:
    from glimprouter.hf import EncodedPrompt, RoutedModel
    from glimprouter.vllm import RoutedEngines

    ServedPair: TypeAlias = RoutedModel | RoutedEngines

MODELS = ("small", "large")
_UNKNOWN = "the chat template of a model does not show it"


@dataclass(frozen=True)
class Markers:
    """Texts around the thinking.

    Attributes:
        starts: Each of them opens it.
        ends: Each of them ends it, the longest first.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]


class PairFacts:
    """A pair as the front sees it; its tokenizers are copies, for a thread of their own."""

    def __init__(self, model: ServedPair) -> None:
        """Of a loaded pair, or of engines that were checked."""
        own = (model.tokenizer, model.large_tokenizer)
        self.config: RouterConfig = model.config
        self.tokenizers = _copies(*own)
        self.contexts = _contexts(model)
        self._most_characters = min(
            self.contexts[name] * max(map(len, tokenizer.get_vocab()))
            for name, tokenizer in zip(MODELS, self.tokenizers, strict=True)
        )
        self.markers = _markers(model)
        self._boundaries = (model.boundary, model.large_boundary)
        self.special_texts = {
            name: {token: tokenizer.decode([token]) for token in tokenizer.all_special_ids}
            for name, tokenizer in zip(MODELS, self.tokenizers, strict=True)
        }
        self._templates = Templates(self.tokenizers)
        self._reads_tools = getattr(model.large_tokenizer, "response_template", None) is not None

    def encode_chat(self, request: ChatRequest) -> EncodedPrompt:
        """The prompt of a chat, for both models.

        Raises:
            RequestError: The templates cannot render it, or would ignore a part of it.
        """
        self._check_length(message.text for message in request.messages)
        options = dict(request.chat_template_kwargs)
        if "chat_template" in options:
            raise unsupported("chat_template_kwargs.chat_template", "a template is code")
        if "tools" in options:
            raise unsupported("chat_template_kwargs.tools", "give them as 'tools'")
        for name in options:
            if not self._templates.know_option(name):
                raise unsupported(f"chat_template_kwargs.{name}", _UNKNOWN)
        if request.tools and request.tool_choice == "auto":
            self._check_tools(request)
            options["tools"] = [tool.model_dump() for tool in request.tools]
        chat = [self._message(place, message) for place, message in enumerate(request.messages)]
        return self._encode(chat, options, "messages")

    def _check_tools(self, request: ChatRequest) -> None:
        if not self._templates.show_tools():
            raise unsupported("tools", _UNKNOWN)
        if not self._reads_tools:
            raise unsupported(
                "tools", "the large model's tokenizer has no response template that reads calls"
            )
        if request.stops:
            raise unsupported("stop", "calls of tools are read from whole answers")
        for place, tool in enumerate(request.tools or ()):
            param = f"tools.{place}.function"
            name = tool.function.get("name")
            if not isinstance(name, str) or not name:
                raise RequestError(f"'{param}.name' must be a text", param=f"{param}.name")
            if tool.function.get("strict"):
                raise unsupported(f"{param}.strict", "nothing holds a model to a schema here")

    def _message(self, place: int, message: Message) -> dict[str, Any]:
        """A message as templates take it; what they would ignore is refused.

        But for the thinking of earlier turns, which most of them leave out on purpose, and the ids
        of calls, which say no more than the order does.
        """
        if not self._templates.show_role(message.role):
            raise unsupported(f"messages.{place}.role", _UNKNOWN)
        if message.name is not None and not self._templates.show_name(message.role):
            raise unsupported(f"messages.{place}.name", _UNKNOWN)
        given = message.model_dump(exclude_none=True)
        if isinstance(message.content, list):
            given["content"] = message.text
        if message.tool_calls is not None:
            if not self._templates.show_calls():
                raise unsupported(f"messages.{place}.tool_calls", _UNKNOWN)
            given.setdefault("content", "")
            given["tool_calls"] = [
                _as_templates_take_it(call, f"messages.{place}.tool_calls.{number}")
                for number, call in enumerate(given["tool_calls"])
            ]
        return given

    def encode_texts(self, request: CompletionRequest) -> list[EncodedPrompt]:
        """The prompts of a completion, which no template touches.

        Raises:
            RequestError: A prompt that is empty, or no text or ids of these models.
        """
        encoded = []
        for prompt in request.prompts:
            if isinstance(prompt, str):
                prompt = self._encoded_text(prompt)
            encoded.append(self._encode(prompt, None, "prompt"))
        return encoded

    def _encoded_text(self, text: str) -> EncodedPrompt:
        from glimprouter.hf import EncodedPrompt

        self._check_length([text])
        small, large = self.tokenizers
        try:
            own = [int(token) for token in small(text).input_ids]
            other = own if large is small else [int(token) for token in large(text).input_ids]
        except (TypeError, UnicodeEncodeError):
            raise RequestError("the prompt is no valid text", param="prompt") from None
        return EncodedPrompt(text, own, list(other))

    def _check_length(self, texts: Iterable[str]) -> None:
        """Refuses what cannot fit, before it costs time: no token has more than so many characters.

        Raises:
            RequestError: All texts together are too long.
        """
        count = sum(map(len, texts))
        if count > self._most_characters:
            raise RequestError(
                f"the prompt has {count} characters, more than the {self._most_characters} that"
                " fit the contexts of the models at best",
                code="context_length_exceeded",
            )

    def check_room(self, prompt: EncodedPrompt, overrides: Mapping[str, Any]) -> None:
        """Checks that the contexts hold a prompt and what it asks for.

        Raises:
            RequestError: They do not, or nothing is left to write.
        """
        from glimprouter.hf.pair.budgets import budgets_of
        from glimprouter.hf.pair.standing import start_of

        config, closing = self.config.replace(**overrides), len(self._boundaries[0].close_ids)
        thinks = self.markers is not None
        try:
            budgets = budgets_of(0, prompt, config, self.contexts, closing, thinks=thinks)
            start_of(0, prompt, self._boundaries, budgets)
        except ValueError as error:
            message = without_numbers(str(error))
            raise RequestError(message, code="context_length_exceeded") from None

    def _encode(self, prompt: Any, options: Mapping[str, Any] | None, param: str) -> EncodedPrompt:
        from glimprouter.hf.pair.prompts import check_template_options, encode_prompt

        try:
            check_template_options([options], {})
            return encode_prompt(prompt, self.tokenizers[0], self.tokenizers[1], options)
        except (TypeError, ValueError) as error:
            raise RequestError(str(error)[:1000], param=param, code="invalid_value") from None


def _contexts(model: ServedPair) -> dict[str, int]:
    """Positions of each model, by name; engines have said theirs."""
    from glimprouter.hf import RoutedModel
    from glimprouter.hf.pair.facts import context_length

    if not isinstance(model, RoutedModel):
        return model.contexts
    return {"small": context_length(model.small), "large": context_length(model.large)}


def _copies(small: Any, large: Any) -> list[Any]:
    """For another thread; one for both models where their tokenizers do the same."""
    own = copy.deepcopy(small)
    return [own, own if _encode_alike(small, large) else copy.deepcopy(large)]


def _encode_alike(small: Any, large: Any) -> bool:
    if small is large:
        return True
    rules, others = (getattr(one, "backend_tokenizer", None) for one in (small, large))
    if type(small) is not type(large) or rules is None or others is None:
        return False
    return bool(
        small.chat_template == large.chat_template
        and small.special_tokens_map == large.special_tokens_map
        and rules.to_str() == others.to_str()
    )


def _as_templates_take_it(call: dict[str, Any], param: str) -> dict[str, Any]:
    """A tool call whose arguments are an object, not JSON as text."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        name = f"{param}.function.arguments"
        raise RequestError(f"{name!r} is no JSON", param=name) from None
    return {**call, "function": {**function, "arguments": arguments}}


def _markers(model: ServedPair) -> Markers | None:
    """Of the pair's thinking; None for a pair that does not think."""
    formats = [format for format in model.thinking_formats if format is not None]
    if not formats:
        return None
    ends = {text for one in formats for text in (one.end.strip(), (one.close or one.end).strip())}
    starts = {one.start.strip() for one in formats}
    return Markers(tuple(sorted(starts)), tuple(sorted(ends, key=len, reverse=True)))
