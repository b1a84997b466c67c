"""The application: dialects' routes, keys, errors in each vendor's shape, and what goes around every request."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from herder.core.errors import HerderError
from herder.serve import dialects as dialect_modules
from herder.serve import exchange as exchanges
from herder.serve.dialect import Dialect, Embed, Generate, Problem
from herder.serve.dialects import openai_error
from herder.serve.evaluations import embed
from herder.serve.health import readiness
from herder.serve.leaving import Gone
from herder.serve.nearest import Nearest, spoken
from herder.serve.page import page_routes
from herder.serve.problems import Refusal, problem_of
from herder.serve.reply import encoded, head
from herder.serve.server import Server
from herder.serve.surroundings import Surroundings

FIRST = "openai_chat"  # whose errors a path has that nobody knows


def build_app(server: Server, dialects: Sequence[Dialect] | None = None) -> ASGIApp:
    """The ASGI application of a server. dialects: by default every module of herder/serve/dialects."""
    known = tuple(load_dialects() if dialects is None else dialects)
    routes: dict[tuple[str, str], list[tuple[Dialect, Any]]] = {}
    for dialect in known:
        for route in dialect.ROUTES:
            routes.setdefault((route.path, route.method), []).append((dialect, route))
    handlers: list[BaseRoute] = [
        Route(path, Endpoint(server, path, found), methods=[method]) for (path, method), found in routes.items()
    ]
    handlers += [
        Route("/health", _live(server)),
        Route("/health/live", _live(server)),
        Route("/health/ready", _ready(server)),
        Route("/metrics", _metrics(server)),
        *page_routes(known),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await server.close()

    nearest = Nearest(known)
    app = Starlette(
        routes=handlers,
        lifespan=lifespan,
        exception_handlers={404: _not_found(nearest), 405: _not_allowed(nearest)},
    )
    return Surroundings(app, server, nearest)


def load_dialects() -> list[Dialect]:
    """Every dialect there is; that of unknown paths first."""
    found = []
    for info in pkgutil.iter_modules(dialect_modules.__path__):
        module = importlib.import_module(f"{dialect_modules.__name__}.{info.name}")
        if hasattr(module, "ROUTES"):
            found.append((info.name != FIRST, info.name, cast("Dialect", module)))
    return [module for _, _, module in sorted(found, key=lambda one: one[:2])]


class Endpoint:
    """One path and method, which two vendors may share."""

    def __init__(self, server: Server, path: str, routes: list[tuple[Dialect, Any]]) -> None:
        self._server, self._path, self._routes = server, path, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self._server
        dialect, route = self._routes[0]
        if len(self._routes) > 1:
            dialect, route = self._routes[spoken([one.NAME for one, _ in self._routes], scope)]
        scope["herder.dialect"] = dialect
        exchange = exchanges.of(scope)
        exchange.path = self._path
        request = Request(scope, receive)
        begun = False

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            principal = await server.gate.authorize(request)
            if isinstance(principal, Problem):
                raise Refusal(principal)
            exchange.principal = principal
            await self._answer(dialect, route, request, scope, receive, watched)
        except Gone:
            exchange.status = 499
        except Exception as error:
            problem = problem_of(error, exchange.id)
            if not isinstance(error, HerderError | Refusal) or problem.kind == "internal":
                server.log.failure(exchange, error)
            if begun:
                raise
            await send_problem(dialect, problem, exchange, send)

    async def _answer(
        self, dialect: Dialect, route: Any, request: Request, scope: Scope, receive: Receive, send: Send
    ) -> None:
        server = self._server
        if isinstance(route, Generate):
            call = await server.call(request)
            wanted = route.parse(call)
            await server.reply(request, wanted, route.answer, route.stream, call.body)(scope, receive, send)
        elif isinstance(route, Embed):
            call = await server.call(request)
            asked = route.parse(call)
            async with server.use(request, asked.model) as llm:
                vectors, tokens = await embed(llm, asked, exchanges.of(scope).principal.key)
                exchanges.of(scope).prompt_tokens = tokens
                exchanges.of(scope).reasons = ("stop",)
                context = server.context(request, asked.model, call.body, llm)
                document = await asyncio.to_thread(lambda: encoded(route.answer(asked, vectors, tokens, context)))
                headers = exchanges.of(scope).headers()
                await exchanges.of(scope).settle()
                await send(head(200, "application/json", headers, len(document)))
                await send({"type": "http.response.body", "body": document})
        else:
            response = await route.handler(request, server)
            for name, value in exchanges.of(scope).headers().items():
                if isinstance(response, Response):
                    response.headers.setdefault(name, value)
            await response(scope, receive, send)


# Paths and methods that no route has ---------------------------------------------------------------------------------
Failed = Callable[[Request, Exception], Awaitable[Response]]


def _not_found(nearest: Nearest) -> Failed:
    async def not_found(request: Request, error: Exception) -> Response:
        problem = Problem("not_found", f"there is no {request.url.path[:200]!r} here")
        return _unknown(nearest, request, problem, 404, {})

    return not_found


def _not_allowed(nearest: Nearest) -> Failed:
    async def not_allowed(request: Request, error: Exception) -> Response:
        headers: Mapping[str, str] = getattr(error, "headers", None) or {}
        allowed = headers.get("allow", headers.get("Allow", ""))
        message = f"{request.url.path[:200]!r} does not take {request.method}, but {allowed}"
        return _unknown(nearest, request, Problem("invalid", message), 405, {"allow": allowed})

    return not_allowed


def _unknown(nearest: Nearest, request: Request, problem: Problem, status: int, headers: Mapping[str, str]) -> Response:
    exchange = exchanges.of(request.scope)
    exchange.path, exchange.status = "", status  # any path would make a label of the metrics
    return nearest.response(request.scope, problem, status=status, headers={**exchange.headers(), **headers})


async def send_problem(dialect: Dialect, problem: Problem, exchange: exchanges.Exchange, send: Send) -> None:
    status, headers, body = dialect.error(problem)
    exchange.status = status
    document = encoded(body)
    await send(head(status, "application/json", {**headers, **exchange.headers()}, len(document)))
    await send({"type": "http.response.body", "body": document})


# Routes of the server itself -----------------------------------------------------------------------------------------
Handler = Callable[[Request], Awaitable[Response]]


def _live(server: Server) -> Handler:
    async def live(request: Request) -> Response:
        exchanges.of(request.scope).path = request.url.path
        return JSONResponse({"status": "draining" if server.draining else "ok"})

    return live


def _ready(server: Server) -> Handler:
    async def ready(request: Request) -> Response:
        exchanges.of(request.scope).path = "/health/ready"
        good, document = await readiness(server)
        return JSONResponse(document, 200 if good else 503)

    return ready


def _metrics(server: Server) -> Handler:
    async def metrics(request: Request) -> Response:
        exchanges.of(request.scope).path = "/metrics"
        principal = await server.gate.authorize(request)
        problem = principal if isinstance(principal, Problem) else await server.gate.observe(principal)
        if problem is not None:
            status, headers, _ = openai_error.error(problem)
            return PlainTextResponse(problem.message + "\n", status, headers)
        page, content_type = server.metrics.exposition(server.models)
        return Response(page, media_type=content_type)

    return metrics
