"""From the bytes of a body to a request; a fault is found early, and costs little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from glimprouter.serve.errors import RequestError, unsupported
from glimprouter.serve.requests import ChatRequest, CompletionRequest

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
_MOST_NAMES = 64  # of one object
_MOST_ENTRIES = 4096  # of one list
_NESTED = ("glimprouter", "messages", "stop", "stream_options", "tools")
_DEPTH = 6  # of the deepest of them: messages, turn, tool_calls, call, function, name

Body = TypeVar("Body", ChatRequest, CompletionRequest)


def parse_request(kind: type[Body], body: bytes) -> Body:
    """A request from its bytes.

    Raises:
        RequestError: No JSON object, a field that is unknown or of another type.
    """
    wanted = _fields(_object(body))
    try:
        request = kind.model_validate(wanted)
    except RecursionError:
        raise RequestError("the body is nested too deeply", code="invalid_json") from None
    except ValidationError as error:
        raise _described(error, wanted) from None
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


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is no JSON: {reason[:200]}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return found


def _fields(found: dict[str, Any]) -> dict[str, Any]:
    """Those that ask for something, none of them too large to be looked at."""
    if len(found) > _MOST_NAMES:
        raise _too_many("the body", len(found), "fields", _MOST_NAMES)
    return {
        name: _without_nulls(value, name, _DEPTH) if name in _NESTED else value
        for name, value in found.items()
        if not _is_neutral(name, value)
    }


def _is_neutral(name: str, value: Any) -> bool:
    """Whether a field asks for nothing; true is no 1 here."""
    if value is None:
        return True
    return any(value == one and type(value) is type(one) for one in _NEUTRAL.get(name, ())) or (
        value == 0.0 and isinstance(value, float) and 0 in _NEUTRAL.get(name, ())
    )


def _without_nulls(value: Any, path: str, depth: int) -> Any:
    """A value whose objects lack the names that are null, as if they had not been given.

    Raises:
        RequestError: An object or a list is too large.
    """
    if depth == 0:
        return value
    if isinstance(value, list):
        if len(value) > _MOST_ENTRIES:
            raise _too_many(path, len(value), "entries", _MOST_ENTRIES)
        return [_without_nulls(one, f"{path}.{at}", depth - 1) for at, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if len(value) > _MOST_NAMES:
        raise _too_many(path, len(value), "fields", _MOST_NAMES)
    free = path.startswith("tools.")  # what a function's schema says is not ours
    return {
        name: one if free else _without_nulls(one, f"{path}.{name[:100]}", depth - 1)
        for name, one in value.items()
        if one is not None
    }


def _too_many(path: str, count: int, what: str, most: int) -> RequestError:
    param = None if path == "the body" else path[:200]
    shown = path if param is None else repr(param)
    message = f"{shown} has {count} {what}, more than the {most} that are taken"
    return RequestError(message, param=param, code="invalid_value")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _has(data: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(data, list) and part < len(data)
    return isinstance(data, dict) and part in data


def _path(fault: Mapping[str, Any], data: Any) -> list[str]:
    """Where a fault is in the body; names of the types of a union are no places."""
    path = []
    for part in fault["loc"]:
        if _has(data, part):
            data = data[part]
        elif fault["type"] != "missing" or part != fault["loc"][-1]:
            continue
        path.append(str(part))
    return path


def _described(error: ValidationError, data: Mapping[str, Any]) -> RequestError:
    """The first fault, with the name of its field; of a union, that of the type that fits best."""
    faults = error.errors(include_url=False, include_context=False)
    own = [fault for fault in faults if fault["loc"][:1] == faults[0]["loc"][:1]]
    fault = max(own, key=lambda one: len(_path(one, data)))
    path = _path(fault, data)
    param = ".".join(path)[:200]
    if path[-3:-2] == ["content"] and path[-1] == "type" and isinstance(fault["input"], str):
        return unsupported(param, f"of the parts {fault['input'][:100]!r} is none that is read")
    if fault["type"] == "extra_forbidden":
        message = f"{param!r} is refused: this server has no such field"
        if param == "glimprouter.drafts":
            message = (
                f"{param!r} is refused: drafts are the same for all requests (they change no"
                " token); where the models are in the server, it is started with --drafts"
            )
        return RequestError(message, param=param, code="unsupported_parameter")
    if fault["type"] == "missing":
        return RequestError(f"{param!r} is missing", param=param, code="missing_parameter")
    return RequestError(f"{param!r}: {fault['msg'][:500]}", param=param, code="invalid_value")
