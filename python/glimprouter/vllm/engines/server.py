"""A server of vLLM, over the completions endpoint that OpenAI's clients know."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from glimprouter.config import check_integer
from glimprouter.vllm.engines.base import (
    EngineFacts,
    EngineLost,
    EngineRefused,
    EngineRequest,
    Piece,
)
from glimprouter.vllm.protocol import ARGUMENT

_SECONDS_TO_CONNECT = 10.0
_BUSY = (429, 500, 502, 503, 504)  # the server, or what is before it, may answer later


class Server:
    """A server by its URL.

    Token ids go in and come out; no text is tokenized, no chat template applied.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        replicas: int = 1,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: Of the server, with or without ``/v1``.
            api_key: Sent as a bearer token; None for none.
            model: Name of the served model; None for the only one that the server names.
            replicas: Data parallel ranks behind it: a sequence keeps to one of them, which has
                its prefix (header ``X-data-parallel-rank``).

        Raises:
            ModuleNotFoundError: httpx is not installed.
            ValueError: No URL, or a number out of range.
        """
        import httpx

        if not url.startswith(("http://", "https://")):
            raise ValueError(f"a server's URL begins with http:// or https://, got {url!r}")
        check_integer("replicas", replicas, 1)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._replicas = replicas
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._httpx: Any = httpx
        self._headers = headers
        self._timeout = httpx.Timeout(None, connect=_SECONDS_TO_CONNECT)  # the client counts
        self._limits = limits
        self._made: Any = None

    @property
    def _client(self) -> Any:
        """Made in the event loop that uses it, and anew after :meth:`close`."""
        if self._made is None:
            self._made = self._httpx.AsyncClient(
                base_url=self.url,
                headers=self._headers,
                timeout=self._timeout,
                limits=self._limits,
                trust_env=False,
            )
        return self._made

    async def facts(self) -> EngineFacts:
        """What it is."""
        models = (await self._get("/v1/models")).get("data") or []
        names = [entry.get("id") for entry in models]
        if self._model is None and len(names) != 1:
            raise EngineRefused(f"{self.url} serves {names}: say which one, Server(url, model=...)")
        name = self._model or names[0]
        entry = next((entry for entry in models if entry.get("id") == name), None)
        if entry is None:
            raise EngineRefused(f"{self.url} does not serve {name!r}, but {names}")
        self._model = name
        context = entry.get("max_model_len")
        if not isinstance(context, int):
            raise EngineRefused(f"{self.url} does not say max_model_len of {name!r}: is it vLLM?")
        version = (await self._get("/version")).get("version", "")
        source = str(entry.get("root") or name)
        return EngineFacts(str(name), context, str(version), source=source)

    async def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        """The answer while it is written, or as a whole."""
        headers = {"X-Request-Id": request.request_id}
        if self._replicas > 1:
            headers["X-data-parallel-rank"] = str(request.replica % self._replicas)
        try:
            async with self._client.stream(
                "POST", "/v1/completions", json=self._body(request), headers=headers
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._refuse(response)
                if request.whole:
                    yield self._whole(await response.aread())
                    return
                async for piece in self._pieces(response):
                    yield piece
        except self._httpx.TransportError as error:
            raise EngineLost(f"{self.url}: {type(error).__name__} {error}") from error

    def _body(self, request: EngineRequest) -> dict[str, Any]:
        """Every option that a model's generation config could set otherwise is given."""
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return {
            **({} if request.whole else streamed),
            "model": self._model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "stop_token_ids": list(request.stop_token_ids),
            "ignore_eos": True,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "vllm_xargs": {ARGUMENT: request.gate.to_json()},
        }

    async def _pieces(self, response: Any) -> AsyncGenerator[Piece, None]:
        ended = False
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[len("data:") :].strip()
            if data == "[DONE]":
                ended = True
                break
            try:
                chunk = json.loads(data)
            except ValueError as error:
                raise EngineLost(f"{self.url} sent {data!r:.80} in a stream") from error
            if "error" in chunk:
                raise EngineLost(f"{self.url} broke off: {chunk['error']}")
            yield self._piece(chunk)
        if not ended:
            raise EngineLost(f"{self.url} broke off in the middle of an answer")

    def _whole(self, body: bytes) -> Piece:
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise EngineLost(f"{self.url} answered {body!r:.80}") from error
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise EngineLost(f"{self.url} answered {body!r:.80}")
        return self._piece(answer)

    def _piece(self, chunk: dict[str, Any]) -> Piece:
        details = (chunk.get("usage") or {}).get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        choices = chunk.get("choices") or []
        if not choices:
            return Piece([], [], cached)
        choice = choices[0]
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = []
        values = (choice.get("logprobs") or {}).get("token_logprobs") or []
        if len(values) != len(tokens):
            raise EngineRefused(
                f"{self.url} sent {len(tokens)} ids with {len(values)} log-probabilities; it must"
                " be a vLLM that knows return_token_ids"
            )
        return Piece(tokens, values, cached, choice.get("finish_reason"))

    def _refuse(self, response: Any) -> None:
        text = f"{self.url} answered {response.status_code}: {response.text:.400}"
        if response.status_code in _BUSY:
            raise EngineLost(text)
        raise EngineRefused(text)

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            response = await self._client.get(path)
        except self._httpx.TransportError as error:
            raise EngineLost(f"{self.url}: {type(error).__name__} {error}") from error
        if response.status_code != 200:
            self._refuse(response)
        try:
            found = response.json()
        except ValueError as error:
            raise EngineRefused(f"{self.url}{path} is no JSON: is it vLLM?") from error
        if not isinstance(found, dict):
            raise EngineRefused(f"{self.url}{path} is {found!r:.80}: is it vLLM?")
        return found

    async def close(self) -> None:
        """Closes the connections."""
        made, self._made = self._made, None
        if made is not None:
            await made.aclose()
