"""Ollama's API for text and vectors: /api/chat, /api/generate, /api/embed and the older /api/embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from herder.chat.format import Thinking
from herder.core.errors import ContextOverflow
from herder.serve import exchange as exchanges
from herder.serve.dialect import Call, Other, Problem
from herder.serve.dialects import ollama_encoding, ollama_request
from herder.serve.dialects import ollama_fields as fields
from herder.serve.dialects.ollama_encoding import Encoding, nanoseconds
from herder.serve.dialects.ollama_names import served_as
from herder.serve.dialects.ollama_request import Asked, AskedVectors
from herder.serve.fields import FieldError
from herder.serve.models import Served
from herder.serve.problems import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from herder.llm import LLM
    from herder.serve.server import Server

NAME = "ollama"
TABLES = (fields.CHAT, fields.GENERATE, fields.EMBED, fields.EMBEDDINGS)
error = ollama_encoding.error


async def chat(request: Request, server: Server) -> ASGIApp:
    """The next message of a conversation; without messages, the model is loaded or unloaded."""
    call = await server.call(request)
    return await _reply(request, server, call, ollama_request.chat(call), chats=True)


async def generate(request: Request, server: Server) -> ASGIApp:
    """The answer to one prompt, or its continuation; without one, the model is loaded or unloaded."""
    call = await server.call(request)
    return await _reply(request, server, call, ollama_request.generate(call), chats=False)


async def embed(request: Request, server: Server) -> ASGIApp:
    """A vector of length 1 for each text."""
    call = await server.call(request)

    def document(vectors: list[list[float]], tokens: int, seconds: float, load: float) -> dict[str, Any]:
        return {
            "model": call.body.get("model"),
            "embeddings": vectors,
            "total_duration": nanoseconds(seconds),
            "load_duration": nanoseconds(load),
            "prompt_eval_count": tokens,
        }

    return await _vectors(request, server, ollama_request.embed(call), document)


async def embeddings(request: Request, server: Server) -> ASGIApp:
    """The vector of one text, as long as it is."""
    call = await server.call(request)

    def document(vectors: list[list[float]], tokens: int, seconds: float, load: float) -> dict[str, Any]:
        return {"embedding": vectors[0] if vectors else []}

    return await _vectors(request, server, ollama_request.embeddings(call), document)


async def _reply(request: Request, server: Server, call: Call, asked: Asked, *, chats: bool) -> ASGIApp:
    from starlette.responses import JSONResponse

    served = served_as(request, server, asked.model)
    exchange = exchanges.of(request.scope)
    if asked.wanted is None and asked.keep == 0:
        if served.llm is not None or served.loading is not None:
            served.keep = 0.0  # whoever is being answered is answered; then it goes
            await server.models.unload(served.name)
        return JSONResponse(Encoding(chats).only("unload", asked.model, exchange.created))
    load = await _loaded(server, served, asked.context, asked)
    if asked.wanted is None:
        async with server.use(request, served.name):
            _keep(served, asked.keep)
        return JSONResponse(Encoding(chats, load).only("load", asked.model, exchange.created))
    wanted = asked.wanted
    if asked.plain is not None and served.llm is not None and served.llm.chat_format is None:
        wanted = asked.plain
    _keep(served, asked.keep)
    encoding = Encoding(chats, load)
    return server.reply(
        request, replace(wanted, model=served.name), encoding.answer, encoding.stream, {"model": asked.model}
    )


async def _vectors(
    request: Request,
    server: Server,
    asked: AskedVectors,
    document: Callable[[list[list[float]], int, float, float], dict[str, Any]],
) -> ASGIApp:
    from starlette.responses import JSONResponse

    from herder.serve.evaluations import embed as evaluate

    started = monotonic()
    served = served_as(request, server, asked.wanted.model)
    load = await _loaded(server, served, asked.context)
    exchange = exchanges.of(request.scope)
    async with server.use(request, served.name) as llm:
        _keep(served, asked.keep)
        inputs, exchange.truncated = await asyncio.to_thread(_inputs, llm, asked)
        vectors, tokens = await evaluate(llm, replace(asked.wanted, inputs=inputs), exchange.principal.key)
        exchange.prompt_tokens, exchange.reasons = tokens, ("stop",)
        found = document(vectors, tokens, monotonic() - started, load)
        return await asyncio.to_thread(JSONResponse, found)


def _inputs(llm: LLM, asked: AskedVectors) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The inputs' tokens, cut to the window where that is wanted, and how many were left out."""
    from herder.serve.evaluations import input_tokens

    wanted = asked.wanted
    whole = [input_tokens(llm, i, text, wanted.truncate) for i, text in enumerate(wanted.inputs)]
    for i, (tokens, text) in enumerate(zip(whole, asked.wanted.inputs, strict=True)):
        if not tokens or not text:
            raise FieldError(f"input[{i}] is an empty text: leave it out", f"input[{i}]")
        if len(tokens) > llm.context and not asked.wanted.truncate:
            raise ContextOverflow(
                f"input[{i}] has {len(tokens)} tokens and the context holds {llm.context}: shorten it, or send "
                "truncate true",
                prompt_tokens=len(tokens),
                limit=llm.context,
            )
    inputs = tuple(tokens[: llm.context] for tokens in whole)
    return inputs, sum(map(len, whole)) - sum(map(len, inputs))


async def _loaded(server: Server, served: Served, context: int | None, asked: Asked | None = None) -> float:
    """Loads the model, so that what is asked of it can be checked before anything runs; the seconds that took."""
    if server.draining:  # use() says so
        return 0.0
    began = monotonic() if served.llm is None else None
    async with server.models.use(served.name) as llm:
        load = 0.0 if began is None else monotonic() - began
        if context is not None and context > llm.context:
            message = (
                f"options.num_ctx is {context}, but {served.name} is loaded with a context of {llm.context} tokens"
            )
            raise FieldError(f"{message}: ask for no more", "options.num_ctx")
        if asked is not None and asked.think and not isinstance(llm.chat_format, Thinking):
            raise Refusal(Problem("invalid", f"{asked.model[:200]!r} does not support thinking", "think"))
    return load


def _keep(served: Served, seconds: float | None) -> None:
    if seconds is not None:
        served.keep = seconds


ROUTES = (
    Other("POST", "/api/chat", chat),
    Other("POST", "/api/generate", generate),
    Other("POST", "/api/embed", embed),
    Other("POST", "/api/embeddings", embeddings),
)
