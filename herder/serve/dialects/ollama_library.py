"""Ollama's API for what is on the disk: /api/pull and /api/delete where the configuration allows them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herder.core.errors import HerderError, StorageError
from herder.serve import exchange as exchanges
from herder.serve import values
from herder.serve.config import ModelSpec
from herder.serve.dialect import Other, Problem
from herder.serve.dialects import ollama_encoding, ollama_options, ollama_request
from herder.serve.dialects import ollama_fields as fields
from herder.serve.dialects.ollama_encoding import CONTENT_TYPE, line
from herder.serve.dialects.ollama_names import LATEST, served_as, spellings
from herder.serve.fields import checked
from herder.serve.leaving import Leaving
from herder.serve.problems import Refusal, problem_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from herder.serve.server import Server

NAME = "ollama_library"
TABLES = (fields.PULL, fields.DELETE, *fields.NOT_SERVED)
error = ollama_encoding.error

EVERY = 0.1  # seconds between two lines of progress
_TURN = "ollama_library.turn"  # server.extra: the lock that lets one pull run at a time


class _Gone(Exception):
    """Whoever asked for a pull has gone away; what has arrived is kept, and the next pull goes on there."""


async def pull(request: Request, server: Server) -> Response:
    """Fetches a model, with its progress as it comes, and serves it."""
    from starlette.responses import JSONResponse, StreamingResponse

    call = await server.call(request)
    body = ollama_options.given(checked(call.body, fields.PULL, call.dropped))
    name = ollama_request.model(body)
    streamed = values.boolean(body.get("stream", True), "stream")
    spec = _wanted(server, name)
    _check_allowed(request, server, spec.pull)
    fetching = Pull(server, spec, exchanges.of(request.scope))
    if streamed:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(fetching.lines(), media_type=CONTENT_TYPE, headers=headers)
    async with Leaving(request.receive), contextlib.aclosing(fetching.statuses()) as statuses:
        async for _ in statuses:
            pass
    return JSONResponse({"status": "success"})


async def delete(request: Request, server: Server) -> Response:
    """Deletes a model's files from this machine and serves it no longer."""
    from starlette.responses import Response

    from herder.weights import store

    call = await server.call(request)
    name = ollama_request.model(ollama_options.given(checked(call.body, fields.DELETE, call.dropped)))
    _check_allowed(request, server, False)
    served = served_as(request, server, name)
    await server.models.remove(served.name)
    try:
        await asyncio.to_thread(store.remove, served.spec.source)
    except HerderError as failure:
        server.models.add(served.spec)
        if isinstance(failure, StorageError):  # the owner's own file, or a package's
            raise Refusal(Problem("forbidden", str(failure), "model")) from None
        raise
    if server.pulled is not None:
        await asyncio.to_thread(server.pulled.remove, served.name)
    return Response()


def _refusing(path: str, remedy: str) -> Callable[[Request, Server], Awaitable[Response]]:
    async def refuse(request: Request, server: Server) -> Response:
        """Not served: the error says what to do instead."""
        raise Refusal(Problem("invalid", f"{path} is not served: {remedy}"))

    return refuse


def _check_allowed(request: Request, server: Server, its_own: bool) -> None:
    """its_own: the model's own configuration lets it be fetched."""
    if not server.principal(request).administers:
        raise Refusal(Problem("forbidden", "this API key may not fetch or delete models: ask the server's owner"))
    if not (server.config.pull or its_own):
        message = "this server's configuration lets no client fetch or delete models: its owner can set pull = true"
        raise Refusal(Problem("forbidden", message))


def _wanted(server: Server, name: str) -> ModelSpec:
    """What a pull of this name fetches: a model of the configuration, or one that short names and the hub know.

    Never a path: what a client names is fetched or refused, and no file of this machine is served because of it.
    Raises Refusal.
    """
    from herder.weights.registry import MODELS, parse_hub_name

    known = [served.spec for served in server.models] + list(server.config.models)
    for spelling in spellings(name):
        for spec in known:
            if spelling in (spec.name, *spec.aliases):
                return spec
    plain = name.removesuffix(LATEST)
    hub = None if plain in MODELS or plain.startswith((".", "/", "~")) else parse_hub_name(plain)
    source = plain if plain in MODELS else str(hub) if hub is not None else ""
    if not source or (hub is not None and Path(source).exists()):
        message = f"model {name[:200]!r} not found: it is no short name (`herder models`) and no hub name org/name"
        raise Refusal(Problem("not_found", message, "model", "model_not_found"))
    return ModelSpec(plain, source, aliases=(source,) if source != plain else ())


class Pull:
    """One pull. statuses() fetches, and yields what Ollama's clients show; it raises HerderError or Refusal."""

    def __init__(self, server: Server, spec: ModelSpec, exchange: exchanges.Exchange) -> None:
        self._server, self._spec, self._exchange = server, spec, exchange
        self._latest: dict[str, Any] | None = None  # from the fetching thread to the event loop
        self._gone = threading.Event()

    async def lines(self) -> AsyncIterator[bytes]:
        try:
            async with contextlib.aclosing(self.statuses()) as statuses:
                async for status in statuses:
                    yield line(status)
            yield line({"status": "success"})
        except Exception as failure:
            if not isinstance(failure, HerderError | Refusal):
                self._server.log.failure(self._exchange, failure)
            yield line({"error": problem_of(failure, self._exchange.id).message})

    async def statuses(self) -> AsyncGenerator[dict[str, Any]]:
        yield {"status": "pulling manifest"}
        turn: asyncio.Lock = self._server.extra.setdefault(_TURN, asyncio.Lock())
        if turn.locked():
            yield {"status": "waiting for another pull to end"}
        async with turn:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[None] = loop.create_future()
            # A thread of its own: those of asyncio load models, and a fetch may take hours.
            threading.Thread(target=self._fetch, args=(loop, done), name="pull", daemon=True).start()
            try:
                while not done.done():
                    await asyncio.wait({done}, timeout=EVERY)
                    latest, self._latest = self._latest, None
                    if latest is not None:
                        yield latest
                    if self._server.draining:
                        message = "the server is shutting down: what has arrived is kept, pull again later"
                        raise Refusal(Problem("unavailable", message))
                done.result()
            finally:
                self._gone.set()
        served = self._server.models.add(self._spec)
        if self._server.pulled is not None and self._spec not in self._server.config.models:
            await asyncio.to_thread(self._server.pulled.add, served.spec)

    def _fetch(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
        from herder.weights import store

        failure: BaseException | None = None
        try:
            store.pull(self._spec.source, offline=self._server.config.offline, progress=self._progress)
        except BaseException as found:
            failure = found
        if not loop.is_closed():
            loop.call_soon_threadsafe(partial(_finish, done, failure))

    def _progress(self, what: str, done: int, total: int | None) -> None:
        if self._gone.is_set():
            raise _Gone
        self._latest = (
            {"status": what} if total is None else {"status": what, "digest": what, "total": total, "completed": done}
        )


def _finish(done: asyncio.Future[None], failure: BaseException | None) -> None:
    if done.done() or isinstance(failure, _Gone):  # nobody waits any more
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


ROUTES = (
    Other("POST", "/api/pull", pull),
    Other("DELETE", "/api/delete", delete),
    *(
        Other(method, path, _refusing(path, remedy))
        for request, remedy in fields.REMEDIES.items()
        for method, _, path in [request.partition(" ")]
    ),
)
