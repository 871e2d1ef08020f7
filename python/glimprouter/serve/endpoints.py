"""What a request goes through: key, size, JSON, prompt, queue; and how its client is watched."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from glimprouter.serve.answers import Answer, ChatAnswer, CompletionAnswer, dump
from glimprouter.serve.errors import RequestError
from glimprouter.serve.front import Front
from glimprouter.serve.generation import Generation
from glimprouter.serve.metrics import ServerMetrics
from glimprouter.serve.options import ServerOptions
from glimprouter.serve.pair import PairFacts
from glimprouter.serve.parsing import Body, parse_request
from glimprouter.serve.requests import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from glimprouter.hf import EncodedPrompt

Value = TypeVar("Value")
_GONE = 499  # of a client that went away; nobody reads it
_QUICK_BYTES = 2**16  # that are parsed at once
_MOST_ENCODING = 64  # requests


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer as JSON."""
    return Response(dump(value), status, headers, "application/json")


def error_response(error: RequestError) -> Response:
    """An error as OpenAI's clients know it."""
    return json_response(error.body(), error.status, error.headers)


def early_response(request: Request, error: RequestError) -> Response:
    """An error before the body was read: a rest of it would keep the connection."""
    response = error_response(error)
    if {"content-length", "transfer-encoding"} & set(request.headers):
        response.headers["Connection"] = "close"
    return response


def check_key(request: Request, api_key: str | None) -> None:
    """Checks the key of a request, in a time that does not tell it.

    Raises:
        RequestError: It lacks the key, or has another one.
    """
    if api_key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").strip().partition(" ")
    # Headers are read as Latin-1, whatever their bytes are.
    right = hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode())
    if scheme.lower() != "bearer" or not right:
        raise RequestError(
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """A JSON body.

    Raises:
        RequestError: It is too large, too slow, or of another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site can send anything but this without being asked first.
        raise RequestError("send 'Content-Type: application/json'", status=415)
    too_large = RequestError(
        f"the body has more than the {most} bytes that this server takes",
        status=413,
        code="request_too_large",
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > most:
        raise too_large
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > most:
                raise too_large

    try:
        await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        raise RequestError(f"the body did not come within {seconds:g} s", status=408) from None
    return bytes(body)


class Endpoints:
    """The endpoints that write text."""

    def __init__(
        self, facts: PairFacts, front: Front, metrics: ServerMetrics, options: ServerOptions
    ) -> None:
        """Of a server.

        Args:
            facts: Of the pair.
            front: To its engine.
            metrics: Told of every answer.
            options: Of the server.
        """
        self._facts = facts
        self._front = front
        self._metrics = metrics
        self._options = options
        self._encoder = ThreadPoolExecutor(1, "glimprouter-encoder")  # tokenizers are not shared
        self._encoding = 0  # requests that wait for it, or have it

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        return await self._answered(request, "chat", self._chat)

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        return await self._answered(request, "completions", self._completions)

    async def _answered(
        self,
        request: Request,
        endpoint: str,
        make: Callable[[Request, bytes], Awaitable[tuple[Generation, bool]]],
    ) -> Response:
        began = time.monotonic()
        status = 500
        body: bytes | None = None
        try:
            check_key(request, self._options.api_key)
            body = await read_body(
                request, self._options.max_body_bytes, self._options.idle_seconds
            )
            generation, streams = await make(request, body)
            if streams:
                await self._taken(request, generation)
                status = 0  # noted when the stream ends
                return self._streamed(request, generation, endpoint, began)
            try:
                answer = await _while_connected(request, generation.complete())
            finally:
                generation.close()
            status = 200
            return json_response(answer)
        except RequestError as error:
            status = error.status
            return error_response(error) if body is not None else early_response(request, error)
        except ClientDisconnect:
            status = _GONE
            return Response(status_code=_GONE)
        finally:
            if status:
                self._metrics.note_answer(endpoint, status, time.monotonic() - began)

    async def _taken(self, request: Request, generation: Generation) -> None:
        """Until it is sure that a stream has no error of its own from the start."""
        try:
            await _while_connected(request, generation.taken())
        except BaseException:
            generation.close()
            raise

    def _streamed(
        self, request: Request, generation: Generation, endpoint: str, began: float
    ) -> Response:
        """A stream whose sequences end when its client goes away, also before it has begun."""
        watching = asyncio.ensure_future(_gone(request))
        watching.add_done_callback(lambda _: generation.close())

        async def chunks() -> AsyncIterator[bytes]:
            status = _GONE
            try:
                async for chunk in generation.chunks():
                    yield chunk
                status = generation.status
            finally:
                watching.cancel()
                self._metrics.note_answer(endpoint, status, time.monotonic() - began)

        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(chunks(), media_type="text/event-stream", headers=headers)

    async def _chat(self, http: Request, body: bytes) -> tuple[Generation, bool]:
        request = await _parsed(ChatRequest, body)
        self._check_model(request.model)
        return await self._started(
            http, request, request.n, lambda: [self._facts.encode_chat(request)], ChatAnswer
        )

    async def _completions(self, http: Request, body: bytes) -> tuple[Generation, bool]:
        request = await _parsed(CompletionRequest, body)
        self._check_model(request.model)
        count = request.n * len(request.prompts)
        return await self._started(
            http, request, count, lambda: self._facts.encode_texts(request), CompletionAnswer
        )

    async def _started(
        self,
        http: Request,
        request: ChatRequest | CompletionRequest,
        count: int,
        encode: Callable[[], list[EncodedPrompt]],
        shape: type[Answer],
    ) -> tuple[Generation, bool]:
        """Room first, then the prompt: a full server turns none into tokens."""
        if count > self._options.max_choices:
            most = self._options.max_choices
            raise RequestError(
                f"{count} sequences are asked for, and a request may have {most}", param="n"
            )
        self._front.reserve(count)
        try:
            prompts = await self._encoded(http, encode)
            tokens = sum(len(prompt.large) for prompt in prompts)
            trace = request.glimprouter.trace
            answer = shape(self._options.model_name, tokens, trace=trace)
            generation = Generation(request, self._facts, answer, prompts)
        except BaseException:
            self._front.give_back(count)
            raise
        generation.start(self._front)
        return generation, request.stream

    async def _encoded(
        self, http: Request, encode: Callable[[], list[EncodedPrompt]]
    ) -> list[EncodedPrompt]:
        """Prompts as tokens, one request at a time, and none whose client has left.

        Raises:
            RequestError: Too many wait for it, or as ``encode`` does.
            ClientDisconnect: The client has left.
        """
        if self._encoding >= _MOST_ENCODING:
            raise RequestError(
                f"{self._encoding} prompts are being read; try again in 1 s",
                status=429,
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        self._encoding += 1
        try:
            loop = asyncio.get_running_loop()
            return await _while_connected(http, loop.run_in_executor(self._encoder, encode))
        finally:
            self._encoding -= 1

    def _check_model(self, name: str) -> None:
        own = self._options.model_name
        if name != own:
            raise RequestError(
                f"there is no model {name[:100]!r} here; this server has {own!r}",
                status=404,
                param="model",
                code="model_not_found",
            )


async def _parsed(kind: type[Body], body: bytes) -> Body:
    """A request; a large one does not keep the other clients waiting."""
    if len(body) < _QUICK_BYTES:
        return parse_request(kind, body)
    return await asyncio.to_thread(parse_request, kind, body)


async def _while_connected(request: Request, work: Awaitable[Value]) -> Value:
    """What comes of some work, which is given up when the client goes away.

    Raises:
        ClientDisconnect: It did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
