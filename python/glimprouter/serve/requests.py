"""Bodies of requests: every field is known, or refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

Entry = TypeVar("Entry")
# A list whose first fault is the last that is looked for: there may be millions.
Entries = Annotated[list[Entry], Field(fail_fast=True)]
Stop = str | Annotated[list[str], Field(max_length=16, fail_fast=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(_Strict):
    """What a tool call calls; the arguments are JSON."""

    name: str
    arguments: str


class ToolCall(_Strict):
    """A tool call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(_Strict):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Entries[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: Entries[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """Its content."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Tool(_Strict):
    """A function that the model may call."""

    type: Literal["function"]
    function: dict[str, Any]


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False


class Routing(_Strict):
    """The field ``glimprouter``: how this request is routed, and what it wants to know.

    Attributes:
        threshold: tau in nats; ``"inf"`` for never the large model.
        trace: Whether each choice comes with its trace.
    """

    threshold: float | Literal["inf"] | None = None
    comparison: Literal[">", ">="] | None = None
    entropy_top_k: int | None = None
    route: Literal["auto", "small", "large"] | None = None
    first_steps_large: int | None = None
    large_tokens: int | None = None
    answer_model: Literal["small", "large"] | None = None
    max_step_tokens: int | None = None
    max_think_tokens: int | None = None
    max_answer_tokens: int | None = None
    repetition_guard: bool | None = None
    trace: bool = False


class GenerationRequest(_Strict):
    """What both endpoints take."""

    model: str
    n: int = Field(1, ge=1)
    stop: Stop | None = None
    seed: int | None = Field(None, ge=0, lt=2**64)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    glimprouter: Routing = Routing()

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Entries[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}
    tools: Entries[Tool] | None = None
    tool_choice: Literal["auto", "none"] = "auto"


def _prompt(value: Any) -> Any:
    """Text or ids, one or a list; by hand, as each of four types would collect its faults.

    Raises:
        PydanticCustomError: None of these.
    """
    if isinstance(value, str) or (value and (_are(int, value) or _are(str, value))):
        return value
    if value and _are(list, value) and all(_are(int, ids) for ids in value):
        return value
    what = "must be text or ids of tokens, or a list of texts or of lists of ids, and not empty"
    raise PydanticCustomError("prompt", what)


def _are(kind: type, values: Any) -> bool:
    """Whether it is a list of this type only; true is no integer here."""
    return isinstance(values, list) and all(type(value) is kind for value in values)


Prompt: TypeAlias = Annotated[str | list[Any], PlainValidator(_prompt)]


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``."""

    prompt: Prompt

    @property
    def prompts(self) -> list[Any]:
        """Each of them, as text or ids."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else list(self.prompt)
