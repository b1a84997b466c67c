"""What goes around every request: its id, who may call from where, headers of safety, the log and the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from herder.serve import exchange as exchanges
from herder.serve.dialect import Problem
from herder.serve.problems import Refusal
from herder.serve.reply import head

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from herder.serve.exchange import Exchange
    from herder.serve.nearest import Nearest
    from herder.serve.server import Server

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
EXPOSED = (
    b"x-request-id, x-herder-ignored-fields, x-herder-truncated-tokens, x-herder-unenforced, retry-after"  # to pages
)
ANY_METHOD = b"GET, POST, DELETE, OPTIONS"


class Surroundings:
    """ASGI middleware, the outermost.

    A page of another site must not use this server through its visitor's browser: a request with an Origin that is
    neither the server's own nor allowed is refused, and so is, without keys, one for a host name that is not this
    machine's (a name that somebody else's DNS points here).
    """

    def __init__(self, app: ASGIApp, server: Server, nearest: Nearest) -> None:
        self._app, self._server, self._nearest = app, server, nearest
        config = server.config
        self._origins = frozenset(config.cors)
        # With keys, whoever calls has shown one; a page that was rebound here by DNS has none.
        self._hosts = None if config.keys is not None else LOCAL | {config.host, *config.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        server = self._server
        given = dict(scope["headers"])
        origin = given.get(b"origin")
        allowed = self._allowed(origin, given)
        extra = list(SAFE)
        if origin is not None and allowed and self._origins:
            extra += [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
            extra.append((b"access-control-expose-headers", EXPOSED))
        exchange: Exchange | None = None

        async def surrounded(message: Any) -> None:
            if message["type"] == "http.response.start":
                if exchange is not None:
                    exchange.status = message["status"]
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in extra if one[0] not in present)]
            await send(message)

        try:
            exchange = exchanges.begin(scope, "", server.config.lenient)
        except Refusal as error:
            await self._nearest.response(scope, error.problem)(scope, receive, surrounded)
            return
        scope["herder.exchange"] = exchange
        problem = self._problem(scope, given, origin is None or allowed)
        try:
            if problem is not None:
                refusal = self._nearest.response(scope, problem, headers=exchange.headers())
                await refusal(scope, receive, surrounded)
            elif origin is not None and self._origins and _preflight(scope, given):
                extra += [
                    (b"access-control-allow-methods", ANY_METHOD),
                    (b"access-control-allow-headers", given.get(b"access-control-request-headers", b"*")),
                    (b"access-control-max-age", b"600"),
                ]
                await surrounded(head(204, "text/plain", {}, 0))
                await surrounded({"type": "http.response.body", "body": b""})
            else:
                await self._app(scope, receive, surrounded)
        finally:
            server.metrics.http(exchange.path, scope["method"], exchange.status, exchange.principal.key)
            server.log.request(scope["method"], exchange)
            if server.traces is not None:
                server.traces.request(scope["method"], given, exchange)

    def _problem(self, scope: Scope, given: dict[bytes, bytes], allowed: bool) -> Problem | None:
        """Why this request is answered no further."""
        hosts = [name for name, _ in scope["headers"]].count(b"host")
        if hosts > 1 or (not hosts and scope["http_version"] == "1.1"):  # RFC 9112, 3.2
            return Problem("invalid", f"the request has {hosts} Host headers: send one")
        if not self._host_is_ours(given.get(b"host", b"")):
            return Problem("forbidden", "this host name is not the server's: add it to `hosts` if it should be")
        if not allowed:
            return Problem("forbidden", "pages of this origin may not call the server: add it to `cors` if they may")
        return None

    def _allowed(self, origin: bytes | None, given: dict[bytes, bytes]) -> bool:
        if origin is None:
            return True
        text = origin.decode("latin-1")
        if "*" in self._origins or text in self._origins:
            return True
        return _parts(text)[0] == given.get(b"host", b"").decode("latin-1") != ""

    def _host_is_ours(self, host: bytes) -> bool:
        if self._hosts is None or not host:
            return True
        return _parts("//" + host.decode("latin-1"))[1] in self._hosts


def _parts(url: str) -> tuple[str, str]:
    """(host with port, host) of a URL, empty for what is none."""
    try:
        parts = urlsplit(url)
        return parts.netloc, parts.hostname or ""
    except ValueError:
        return "", ""


def _preflight(scope: Scope, given: dict[bytes, bytes]) -> bool:
    return bool(scope["method"] == "OPTIONS" and b"access-control-request-method" in given)
