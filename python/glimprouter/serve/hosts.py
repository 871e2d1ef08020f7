"""Names that a server answers to: a page of another site may have its own name lead to here."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request

from glimprouter.serve.endpoints import early_response
from glimprouter.serve.errors import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address that is listened to can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str, api_key: str | None, more: Sequence[str]) -> frozenset[str]:
    """Names to answer to; none of them for any.

    Where neither a key nor the network keeps others out, the name has to: browsers send the one
    that a page was loaded from.

    Args:
        host: That is listened to.
        api_key: That requests must bring.
        more: Names that were asked for.
    """
    own = {host, *_LOOPBACK_NAMES} if is_loopback(host) else {host}
    names = {_plain(name) for name in (*own, *more)}
    bound = bool(more) or (is_loopback(host) and api_key is None)
    return frozenset(names) if bound else frozenset()


def _plain(host: str) -> str:
    """Without port and brackets."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name if name.count(":") > 1 else name.partition(":")[0].removesuffix(".")


class HostCheck:
    """Refuses requests to other names."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """Around an application.

        Args:
            app: The application.
            hosts: Names, without ports.
        """
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with 421, or hands the request on."""
        if scope["type"] == "http":
            request = Request(scope)
            if _plain(request.headers.get("host", "")) not in self._hosts:
                message = "this server does not answer to that name; see --allowed-host"
                error = RequestError(message, status=421, code="unknown_host")
                await early_response(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
