"""The application: its routes, and how anything that goes wrong is answered."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from glimprouter.serve.endpoints import (
    Endpoints,
    check_key,
    early_response,
    error_response,
    json_response,
)
from glimprouter.serve.engine_metrics import metrics_of
from glimprouter.serve.errors import RequestError
from glimprouter.serve.front import Front
from glimprouter.serve.hosts import HostCheck
from glimprouter.serve.live import PAGE, Feed, LiveView
from glimprouter.serve.options import ServerOptions
from glimprouter.serve.pair import PairFacts

if TYPE_CHECKING:
    from glimprouter.serve.pair import ServedPair

# The page loads nothing, and talks to this server only.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server:
    """What belongs to one pair that is served.

    Attributes:
        app: The application.
        front: To the engine.
    """

    def __init__(self, model: ServedPair, options: ServerOptions) -> None:
        """Nothing runs before the application's start.

        Args:
            model: The pair; nobody else uses it meanwhile.
            options: Limits and names.
        """
        self.options = options
        self.metrics = metrics_of(model)
        self.live = LiveView() if options.live_view else None
        self.front = Front(model, options, self.metrics, self.live)
        self.metrics.watch(lambda: self.front.engine.usage, lambda: self.front.in_flight)
        facts = PairFacts(model)
        self._endpoints = Endpoints(facts, self.front, self.metrics, options)
        self._context = min(facts.contexts.values())
        self._created = int(time.time())
        self.app = self._application()

    def begin_stop(self) -> None:
        """New requests are refused; what runs is saved, or ends."""
        self.front.stopping = True
        if self.options.save_dir is not None:
            self.front.engine.stop()
        if self.live is not None:
            self.live.close()

    @asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        self.front.listen()
        yield
        self.begin_stop()
        self.front.engine.stop()
        await self.front.stopped(10.0)

    def _application(self) -> FastAPI:
        app = FastAPI(
            lifespan=self._life,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            title="glimprouter",
            redirect_slashes=False,  # to an address made of the name that was sent
        )
        if self.options.allowed_hosts:
            app.add_middleware(HostCheck, hosts=self.options.allowed_hosts)
        app.state.server = self
        app.add_route("/v1/chat/completions", self._endpoints.chat, methods=["POST"])
        app.add_route("/v1/completions", self._endpoints.completions, methods=["POST"])
        shown = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._models,
            "/health": self._health,
            "/metrics": self._metrics_text,
        }
        if self.live is not None:
            shown |= {"/": self._page, "/live": self._updates}
        for path, endpoint in shown.items():
            app.add_route(path, endpoint, methods=["GET"])
        app.add_exception_handler(RequestError, self._refused)
        app.add_exception_handler(HTTPException, self._no_route)
        app.add_exception_handler(Exception, self._failed)
        return app

    async def _models(self, request: Request) -> Response:
        check_key(request, self.options.api_key)
        own = {
            "id": self.options.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "glimprouter",
            "max_model_len": self._context,
        }
        name = request.path_params.get("name")
        if name is None:
            return json_response({"object": "list", "data": [own]})
        if name != self.options.model_name:
            raise RequestError("there is no such model here", status=404, code="model_not_found")
        return json_response(own)

    async def _health(self, _: Request) -> Response:
        more = self.front.engine.health()
        if self.front.unavailable is not None:
            return json_response({"status": "unavailable", **more}, 503)
        return json_response({"status": "ok", **more})

    async def _metrics_text(self, request: Request) -> Response:
        check_key(request, self.options.api_key)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _page(self, _: Request) -> Response:
        return Response(PAGE.read_bytes(), headers=_PAGE_HEADERS, media_type="text/html")

    async def _updates(self, request: Request) -> Response:
        check_key(request, self.options.api_key)
        assert self.live is not None
        headers = {"Cache-Control": "no-store"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        viewer = self.live.join()
        if viewer is None:
            raise RequestError("too many look on; try again later", status=503)
        return Feed(self.live, viewer, self.metrics.totals, headers)

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return early_response(request, error)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers: dict[str, Any] = dict(error.headers or {})
        refused = RequestError(str(error.detail), status=error.status_code, headers=headers)
        return early_response(request, refused)

    async def _failed(self, _: Request, __: Exception) -> Response:
        """Whatever nobody expected is in the server's log, not in the answer."""
        return error_response(RequestError("an error in the server; see its log", status=500))
