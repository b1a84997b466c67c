"""The server that handlers see: models, keys, metrics, and how a request gets to use them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from herder.serve import exchange as exchanges
from herder.serve.body import read_object
from herder.serve.catalogue import Card, Catalogue
from herder.serve.config import Config
from herder.serve.dialect import Call, Context, Dialect, Encoder, Problem
from herder.serve.gate import Gate, Open, Principal
from herder.serve.image_bounds import check_bounds
from herder.serve.leaving import Gone, Leaving
from herder.serve.linked_images import LinkedImages
from herder.serve.log import Log
from herder.serve.metrics import Metrics
from herder.serve.models import Models, Served
from herder.serve.problems import Refusal, problem_of
from herder.serve.wire import Answer, ChatRequest, TextRequest

if TYPE_CHECKING:
    from starlette.requests import Request

    from herder.llm import LLM
    from herder.serve.pulled import Pulled
    from herder.serve.reply import Reply
    from herder.serve.traces import Traces

CONCURRENT = 64  # requests that a model that is not loaded yet is taken to run at once
RETRY_LEAST, RETRY_MOST = 1.0, 60.0

Whole = Callable[[ChatRequest | TextRequest, Answer, Context], Mapping[str, Any]]
T = TypeVar("T")
Streamed = Callable[[ChatRequest | TextRequest, Context], Encoder]


class Server:
    """What an application serves. A handler of a dialect's Other route gets the Starlette request and this, and returns
    a Starlette response (or raises Refusal or HerderError, which its dialect then encodes):

    `call = await server.call(request)` is the body, the path's and the query's parameters;
    `async with server.use(request, name) as llm:` is the model by any of its names, admitted by the key's limits,
    loaded, and recorded as used;
    `async with server.use_for(request, name, wanted) as (llm, wanted):` is that with the images which the request names
    by URL fetched;
    `server.reply(request, wanted, answer, stream)` is the response to a request for text, streamed or not;
    `server.models` loads and unloads, `server.catalogue` describes; `server.principal(request)` is who asks.
    `server.extra` holds what modules keep between requests (the store of responses); it is closed with the server.
    """

    def __init__(
        self,
        config: Config,
        models: Models,
        *,
        gate: Gate | None = None,
        metrics: Metrics | None = None,
        log: Log | None = None,
        images: LinkedImages | None = None,
        pulled: Pulled | None = None,
    ) -> None:
        self.config = config
        self.models = models
        self.catalogue = Catalogue(models, config.offline)
        self.gate: Gate = gate or Open()
        self.metrics = metrics or Metrics()
        self.log = log or Log(requests=False)
        self.images = images or LinkedImages(config, self.log)
        self.pulled = pulled
        self.extra: dict[str, Any] = {}
        self.traces: Traces | None = None
        self.draining = False
        self._closed = False
        self._seconds = 1.0  # how long a request takes, a moving mean

    def principal(self, request: Request) -> Principal:
        return exchanges.of(request.scope).principal

    async def cards(self, request: Request) -> list[tuple[Card, str]]:
        """The models that whoever asks may use, by each of their names: an alias is an entry of its own, so that a
        program finds the name it looks for."""
        allowed = self.principal(request).models
        cards = [card for card in await self.catalogue.cards() if allowed is None or card.name in allowed]
        return [(card, name) for card in cards for name in (card.name, *card.aliases)]

    async def card(self, request: Request, name: str) -> Card:
        """One of them. Raises Refusal (not_found)."""
        allowed = self.principal(request).models
        served = self.models.find(name, allowed)
        if allowed is not None and served.name not in allowed:
            raise self.models.unknown(name, allowed)
        return await self.catalogue.card(served.name)

    async def close(self) -> None:
        """Unloads the models, writes what the gate has left, and closes what modules keep."""
        if not self._closed:
            self._closed = True
            self.images.close()
            await self.models.close()
            await self.gate.close()
            for kept in self.extra.values():
                await kept.close()
        if self.traces is not None:
            await self.traces.close()

    async def call(self, request: Request) -> Call:
        """Reads the request. Raises Refusal."""
        exchange = exchanges.of(request.scope)
        body = await read_object(request, self.config.limits)
        return Call(body, dict(request.path_params), dict(request.query_params), exchange.dropped)

    def context(self, request: Request, model: str, body: Mapping[str, Any], llm: LLM | None = None) -> Context:
        exchange = exchanges.of(request.scope)
        if llm is None:
            return Context(exchanges.unique(), exchange.created, model, body)
        spell = llm.tokenizer.token_bytes
        return Context(exchanges.unique(), exchange.created, model, body, spell, exchange.fingerprint)

    def reply(
        self,
        request: Request,
        wanted: ChatRequest | TextRequest,
        answer: Whole,
        stream: Streamed,
        body: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The response to a request for text; nothing runs before it is called."""
        from herder.serve.reply import Reply

        return Reply(self, request, wanted, answer, stream, body or {})

    @contextlib.asynccontextmanager
    async def use(self, request: Request, model: str) -> AsyncIterator[LLM]:
        """The model for one request, whose body has been read. Raises Refusal: not served, not allowed, the server full
        or draining. A client that disconnects cancels the block, which then raises Gone."""
        exchange = exchanges.of(request.scope)
        served = self.models.find(model, exchange.principal.models)
        exchange.model = served.name
        if self.draining:
            raise Refusal(Problem("unavailable", "the server is shutting down", retry_after=RETRY_LEAST))
        self._check_queue(served)
        problem = await self.gate.admit(exchange.principal, served.name)
        if problem is not None:
            raise Refusal(problem)

        leaving = Leaving(request.receive)

        async def settle() -> None:
            leaving.answered()
            usage = exchange.usage()
            self._seconds += (usage.seconds - self._seconds) / 16
            self.metrics.end(exchange)
            await self.gate.record(exchange.principal, usage)

        exchange.settled = settle
        try:
            async with leaving, self.models.use(model) as llm:
                exchange.fingerprint = served.fingerprint
                yield llm
        except BaseException as error:
            exchange.status = self.status_of(request, error)
            raise
        finally:
            await exchange.settle()

    @contextlib.asynccontextmanager
    async def use_for(self, request: Request, model: str, wanted: T) -> AsyncIterator[tuple[LLM, T]]:
        """use(), and the request with its images in place. Raises FieldError for too many or too large ones and for a
        URL that is not allowed before anything is loaded, for one that cannot be had before anything is decoded."""
        check_bounds(wanted, self.config.limits)
        self.images.check(wanted)
        async with self.use(request, model) as llm:
            if llm.sees:  # one that does not refuses them: none is fetched for it
                wanted = await self.images.fetched(wanted, exchanges.of(request.scope))
                check_bounds(wanted, self.config.limits)
            yield llm, wanted

    def status_of(self, request: Request, error: BaseException) -> int:
        """The HTTP status that an error has in the request's dialect; 499 for a client that went away."""
        if isinstance(error, Gone | asyncio.CancelledError | GeneratorExit):
            return 499
        dialect: Dialect = request.scope["herder.dialect"]
        return dialect.error(problem_of(error))[0]

    def _check_queue(self, served: Served) -> None:
        concurrent = CONCURRENT if served.llm is None else served.llm.engine.limits.batch_chunks
        most = concurrent + self.config.limits.queue
        if served.users >= most:
            wait = self._seconds * (served.users - concurrent + 1) / concurrent
            message = f"{served.name} is answering {concurrent} requests and {most - concurrent} wait: try again later"
            self.metrics.refused(served.name)
            raise Refusal(Problem("overloaded", message, retry_after=min(max(wait, RETRY_LEAST), RETRY_MOST)))
