"""What a request asks for and nobody here does is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glimprouter.config import RouterConfig
from glimprouter.serve import parsing
from glimprouter.serve.errors import RequestError
from glimprouter.serve.parsing import parse_request
from glimprouter.serve.requests import ChatRequest, CompletionRequest, Routing

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def refused(kind: Any = ChatRequest, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_request(kind, json.dumps({**CHAT, **fields}).encode())
    return caught.value


NAMED: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": True},
    "top_logprobs": {"top_logprobs": 3},
    "logit_bias": {"logit_bias": {"5": 1}},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": -1},
    "response_format": {"response_format": {"type": "json_object"}},
    "parallel_tool_calls": {"parallel_tool_calls": False},
    "reasoning_effort": {"reasoning_effort": "low"},
    "service_tier": {"service_tier": "flex"},
    "store": {"store": True},
    "metadata": {"metadata": {"a": "b"}},
    "prompt": {"prompt": "x"},
    "no_such": {"no_such": 1},
    "tool_choice": {"tool_choice": "required"},
    "stream_options.include_obfuscation": {
        "stream": True,
        "stream_options": {"include_obfuscation": True},
    },
    "glimprouter.drafts": {"glimprouter": {"drafts": 4}},
    "glimprouter.policy": {"glimprouter": {"policy": "x"}},
    "glimprouter.route": {"glimprouter": {"route": "manual"}},
    "n": {"n": 0},
    "seed": {"seed": -1},
    "temperature": {"temperature": "hot"},
    "max_tokens": {"max_tokens": 0},
    "messages": {"messages": []},
    "messages.0.role": {"messages": [{"role": "robot", "content": "x"}]},
    "messages.0.audio": {"messages": [{"role": "user", "content": "x", "audio": {}}]},
    "model": {"model": None},
    "stream": {"stream": "yes"},
    "stream_options": {"stream_options": {"include_usage": True}},
    "stop": {"stop": ["a", ""]},
}


@pytest.mark.parametrize("param", NAMED)
def test_a_field_is_refused_by_name(param: str) -> None:
    error = refused(**NAMED[param])
    assert error.status == 400
    assert str(error.param).startswith(param)
    assert param.split(".")[-1] in error.message
    assert error.body()["error"]["param"] == error.param


def test_two_names_of_one_thing() -> None:
    assert "mean the same" in refused(max_tokens=3, max_completion_tokens=4).message
    request = parse_request(ChatRequest, json.dumps({**CHAT, "max_completion_tokens": 4}).encode())
    assert request.max_tokens == 4


def test_what_asks_for_nothing_is_taken() -> None:
    """Values that clients send because they are the default."""
    neutral = {
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "tools": [],
        "stop": None,
        "metadata": None,
        "user": "me",
    }
    request = parse_request(ChatRequest, json.dumps({**CHAT, **neutral}).encode())
    assert (request.n, request.stops, request.stream) == (1, [], False)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"\xff", b'{"model": NaN}', b"[" * 100_000, b'{"a": 1' + b"1" * 9999],
    ids=range(8),
)
def test_bodies_that_are_none(body: bytes) -> None:
    with pytest.raises(RequestError, match="body") as caught:
        parse_request(CompletionRequest, body)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_json"


def test_the_first_fault_of_a_large_body_is_a_short_message() -> None:
    error = refused(**{"x" * 10_000: 1})
    assert len(json.dumps(error.body())) < 1000


def test_every_option_of_a_sequence_is_a_field() -> None:
    """Those of the sampling are OpenAI's, outside of ``glimprouter``."""
    sampling = {"temperature", "top_p", "top_k", "min_p"}
    assert sampling <= ChatRequest.model_fields.keys()
    routing = Routing.model_fields.keys() - {"trace"}
    assert routing == RouterConfig.__dataclass_fields__.keys() - sampling


MANY = 300_000


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (ChatRequest, {"messages": [1] * MANY}, "messages"),
        (ChatRequest, {"tools": [1] * MANY}, "tools"),
        (ChatRequest, {"stop": [1] * MANY}, "stop"),
        (
            ChatRequest,
            {"messages": [{"content": [1] * MANY}]},
            "messages.0.content",
        ),
        (ChatRequest, {"glimprouter": {str(k): 1 for k in range(MANY)}}, "glimprouter"),
        (ChatRequest, {str(k): 1 for k in range(MANY)}, None),
        (ChatRequest, {"messages": [1] * 4000}, "messages.0"),
        (CompletionRequest, {"prompt": [[[]]] * MANY}, "prompt"),
        (CompletionRequest, {"prompt": [1, *["x"] * MANY]}, "prompt"),
        (CompletionRequest, {"prompt": [True]}, "prompt"),
    ],
    ids=range(10),
)
def test_a_million_faults_are_one(
    kind: Any, fields: dict[str, Any], param: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pydantic would keep each of them."""
    counts = []
    described = parsing._described
    monkeypatch.setattr(
        parsing,
        "_described",
        lambda error, data: counts.append(error.error_count()) or described(error, data),
    )
    fields = {"model": "m", **fields} if kind is CompletionRequest else {**CHAT, **fields}
    with pytest.raises(RequestError) as caught:
        parse_request(kind, json.dumps(fields).encode())
    assert caught.value.param == param
    assert sum(counts) < 10


@pytest.mark.parametrize("prompt", ["x", ["x", "y"], [1, 2], [[1], [2, 3]]])
def test_prompts_of_all_kinds(prompt: Any) -> None:
    body = json.dumps({"model": "m", "prompt": prompt}).encode()
    assert parse_request(CompletionRequest, body).prompt == prompt


def test_parts_that_are_no_text_are_named() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    content = [{"type": "text", "text": "x"}, image]
    error = refused(messages=[{"role": "user", "content": content}])
    assert error.param == "messages.0.content.1.type"
    assert "image_url" in error.message
    error = refused(messages=[{"role": "user", "content": 5}])
    assert error.param == "messages.0.content"


def test_nulls_are_as_if_they_were_not_there() -> None:
    """Clients send them within the turns of earlier answers."""
    call = {"id": "c", "index": None, "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "refusal": None, "audio": None, "tool_calls": [call]}
    request = parse_request(
        ChatRequest,
        json.dumps(
            {**CHAT, "messages": [turn], "glimprouter": {"drafts": None, "trace": None}}
        ).encode(),
    )
    assert request.messages[0].model_dump(exclude_unset=True) == {
        "role": "assistant",
        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
    }
