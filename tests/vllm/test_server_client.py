"""What a server says over HTTP, and what a client makes of it; no vLLM."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from glimprouter.vllm import EngineLost, EngineRefused, Server
from glimprouter.vllm.engines.base import EngineFacts, EngineRequest, Piece
from glimprouter.vllm.protocol import ARGUMENT, BoundarySpec, GateOptions

OPTIONS = GateOptions(BoundarySpec(None, None, None, (2,)), 7)
REQUEST = EngineRequest("name", [4, 5], 9, OPTIONS, [2, 7], replica=5)
WHOLE = dataclasses.replace(REQUEST, whole=True)
MODELS = {"data": [{"id": "m", "max_model_len": 99}]}
Handler = Callable[[httpx.Request], httpx.Response]


def chunk(tokens: list[int], values: list[float], **other: Any) -> str:
    choice = {"token_ids": tokens, "logprobs": {"token_logprobs": values}, **other}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def answering(body: str = "", status: int = 200, models: Any = MODELS) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=models)
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": "0.32.0"})
        return httpx.Response(status, text=body)

    return handler


def server_of(handler: Handler, **options: Any) -> Server:
    server = Server("http://host:1/v1/", **options)
    server._made = httpx.AsyncClient(
        transport=httpx.MockTransport(handler), base_url=server.url, headers=server._headers
    )
    return server


def facts(handler: Handler, **options: Any) -> EngineFacts:
    return asyncio.run(server_of(handler, **options).facts())


def pieces(handler: Handler, request: EngineRequest = REQUEST, **options: Any) -> list[Piece]:
    async def collect() -> list[Piece]:
        return [piece async for piece in server_of(handler, **options).write(request)]

    return asyncio.run(collect())


def test_an_answer() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 32}}}
    body = (
        chunk([4], [64.0]) + ": a comment\n\n" + chunk([5, 7], [1.5, 1029.0], finish_reason="stop")
    )
    body += f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n"
    assert pieces(answering(body)) == [
        Piece([4], [64.0]),
        Piece([5, 7], [1.5, 1029.0], None, "stop"),
        Piece([], [], 32),
    ]


def test_a_request() -> None:
    """Ids, the gate's argument as one string, greedy, and nothing left to a generation config."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, text="data: [DONE]\n\n")

    pieces(handler, api_key="secret", model="m", replicas=3)
    (request,) = seen
    body = json.loads(request.content)
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["X-data-parallel-rank"] == "2"
    assert GateOptions.from_json(body["vllm_xargs"][ARGUMENT]) == OPTIONS
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("m", [4, 5], 9)
    assert (body["temperature"], body["repetition_penalty"], body["stop_token_ids"]) == (
        0,
        1,
        [2, 7],
    )


def test_a_whole_answer() -> None:
    """Not streamed: one piece, with what was cached."""
    seen: list[Any] = []
    choice = {"token_ids": [5, 7], "logprobs": {"token_logprobs": [1.5, 1029.0]}}
    told = {
        "choices": [{**choice, "finish_reason": "stop"}],
        "usage": {"prompt_tokens_details": {"cached_tokens": 32}},
    }

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=told)

    assert pieces(handler, WHOLE) == [Piece([5, 7], [1.5, 1029.0], 32, "stop")]
    assert "stream" not in seen[0]
    assert "stream_options" not in seen[0]


@pytest.mark.parametrize(
    ("handler", "error", "message"),
    [
        (answering("full", 503), EngineLost, "503"),
        (answering("bad", 400), EngineRefused, "400: bad"),
        (answering("{nonsense"), EngineLost, "nonsense"),
        (answering("[]"), EngineLost, "answered"),
        (answering('{"error": {"message": "dead"}}'), EngineLost, "dead"),
        (
            answering('{"choices": [{"token_ids": [4], "logprobs": null}]}'),
            EngineRefused,
            "log-probabilities",
        ),
    ],
)
def test_whole_answers_that_are_none(
    handler: Handler, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pieces(handler, WHOLE)


@pytest.mark.parametrize(
    ("handler", "error", "message"),
    [
        (answering("full", 503), EngineLost, "503"),
        (answering("slow down", 429), EngineLost, "429"),
        (answering("bad", 400), EngineRefused, "400: bad"),
        (answering("who are you", 401), EngineRefused, "401"),
        (answering("too large", 413), EngineRefused, "413: too large"),
        (answering(chunk([4], [64.0])), EngineLost, "in the middle"),
        (answering(chunk([4], [])), EngineRefused, "log-probabilities"),
        (answering("data: {nonsense\n\n"), EngineLost, "nonsense"),
        (answering('data: {"error": {"message": "dead"}}\n\n'), EngineLost, "dead"),
    ],
)
def test_answers_that_are_none(handler: Handler, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pieces(handler)


def test_a_connection_that_breaks() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset by peer")

    with pytest.raises(EngineLost, match="ReadError reset by peer"):
        pieces(handler)
    with pytest.raises(EngineLost, match="http://host:1"):
        facts(handler)


def test_what_a_server_is() -> None:
    assert facts(answering()) == EngineFacts("m", 99, "0.32.0", source="m")
    named = {"data": [{"id": "m", "root": "org/model", "max_model_len": 9}]}
    assert facts(answering(models=named)).source == "org/model"
    two = {"data": [{"id": "m", "max_model_len": 9}, {"id": "lora", "max_model_len": 8}]}
    assert facts(answering(models=two), model="lora").context == 8
    with pytest.raises(EngineRefused, match="say which one"):
        facts(answering(models=two))
    with pytest.raises(EngineRefused, match="does not serve 'x'"):
        facts(answering(models=two), model="x")
    with pytest.raises(EngineRefused, match="is it vLLM"):
        facts(answering(models={"data": [{"id": "m"}]}))
    with pytest.raises(EngineRefused, match="is it vLLM"):
        facts(lambda request: httpx.Response(200, text="<html>"))
    with pytest.raises(ValueError, match="https://"):
        Server("host:8000")
    with pytest.raises(ValueError, match="replicas"):
        Server("http://host", replicas=0)
