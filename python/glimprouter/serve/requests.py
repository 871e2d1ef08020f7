"""Bodies of requests: every field is known, or refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glimprouter.serve.errors import RequestError

# Values that ask for nothing, of fields that cannot ask for anything here.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tools": ([],),
    "top_logprobs": (0,),
}

Stop = str | Annotated[list[str], Field(max_length=16)]


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
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


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

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = {}
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] = "auto"


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]]


Body = TypeVar("Body", ChatRequest, CompletionRequest)


def parse_request(kind: type[Body], body: bytes) -> Body:
    """A request from its bytes.

    Raises:
        RequestError: No JSON object, a field that is unknown or of another type.
    """
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is no JSON: {reason[:200]}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    wanted = {name: value for name, value in found.items() if not _is_neutral(name, value)}
    try:
        request = kind.model_validate(wanted)
    except (ValidationError, RecursionError) as error:
        raise _described(error) from None
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        if request.max_tokens is not None:
            raise RequestError(
                "'max_tokens' and 'max_completion_tokens' mean the same; give one of them",
                param="max_tokens",
            )
        request.max_tokens = request.max_completion_tokens
    if request.stream_options is not None and not request.stream:
        raise RequestError("'stream_options' needs 'stream': true", param="stream_options")
    if "" in request.stops:
        raise RequestError("'stop' holds an empty text", param="stop")
    return request


def _is_neutral(name: str, value: Any) -> bool:
    """Whether a field asks for nothing; true is no 1 here."""
    if value is None:
        return True
    return any(value == one and type(value) is type(one) for one in _NEUTRAL.get(name, ())) or (
        value == 0.0 and isinstance(value, float) and 0 in _NEUTRAL.get(name, ())
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _described(error: ValidationError | RecursionError) -> RequestError:
    """The first fault, with the name of its field."""
    if isinstance(error, RecursionError):
        return RequestError("the body is nested too deeply", code="invalid_json")
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    parts = [str(part) for part in fault["loc"]]
    param = ".".join(parts)[:200]
    if fault["type"] == "extra_forbidden":
        message = f"{param!r} is refused: this server has no such field"
        if param == "glimprouter.drafts":
            message = (
                f"{param!r} is refused: drafts are the same for all requests (they change no"
                " token); start the server with --drafts"
            )
        return RequestError(message, param=param, code="unsupported_parameter")
    if fault["type"] == "missing":
        return RequestError(f"{param!r} is missing", param=param, code="missing_parameter")
    return RequestError(f"{param!r}: {fault['msg']}", param=param, code="invalid_value")
