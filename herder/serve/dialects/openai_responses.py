"""OpenAI's responses: POST /v1/responses, whole and streamed; what is stored is read, continued and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from herder.serve import values
from herder.serve.dialect import Context, Encoder, Other, Problem, Route
from herder.serve.dialects import openai_error
from herder.serve.dialects.openai_responses_answer import answer, response_id
from herder.serve.dialects.openai_responses_fields import COUNT, INPUT_ITEMS, RETRIEVE, TABLE
from herder.serve.dialects.openai_responses_items import Item, with_ids
from herder.serve.dialects.openai_responses_request import INCLUDES, Asked, parse, parse_count
from herder.serve.dialects.openai_responses_stream import Stream
from herder.serve.fields import FieldError, Table, checked
from herder.serve.problems import Refusal
from herder.serve.store import Missing, ResponseStore, Stored, store_path
from herder.serve.wire import Answer, ChatRequest, TextRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send

    from herder.serve.reply import Reply
    from herder.serve.server import Server

NAME = "openai_responses"
TABLES = (TABLE, COUNT, RETRIEVE, INPUT_ITEMS)
STORE = "responses"  # in Server.extra
error = openai_error.error


def store_of(server: Server) -> ResponseStore:
    """The server's store, made at its first use. Raises Missing where it has none."""
    store = server.extra.get(STORE)
    if store is None:
        path = store_path(server.config)
        if path is None:
            raise Missing("this server stores no responses: send the whole conversation as input", "")
        limits = server.config.limits
        store = server.extra[STORE] = ResponseStore(
            path, days=limits.responses_days, responses=limits.responses, bytes=limits.responses_bytes
        )
    assert isinstance(store, ResponseStore)
    return store


async def create(request: Request, server: Server) -> _Kept:
    """Answers, and stores the answer."""
    call = await server.call(request)
    asked = parse(call)
    if asked.store and store_path(server.config) is None:
        if "store" in call.body:
            raise FieldError("store is true, but this server stores no responses: send false", "store")
        asked = replace(asked, store=False, echo={**asked.echo, "store": False})
    wanted, items = await _joined(request, server, asked)
    return _Kept(server, request, asked, wanted, items, call.body)


async def input_tokens(request: Request, server: Server) -> Response:
    """Counts the tokens of the prompt that a request would have."""
    from herder.serve import exchange
    from herder.serve.prompts import count_tokens

    wanted, _ = await _joined(request, server, parse_count(await server.call(request)))
    async with server.use_for(request, wanted.model, wanted) as (llm, wanted):
        tokens = await count_tokens(llm, wanted)
        exchange.of(request.scope).prompt_tokens = tokens
    return await _json({"object": "response.input_tokens", "input_tokens": tokens})


async def _joined(request: Request, server: Server, asked: Asked) -> tuple[ChatRequest, Sequence[Item]]:
    """The request with the conversation that it continues, and its own items without references."""
    owner = server.principal(request).key
    history: Sequence[Item] = ()
    items: Sequence[Item] = asked.items
    if asked.previous is not None:
        try:
            history = await store_of(server).history(asked.previous, owner)
        except Missing as missing:
            problem = Problem("invalid", str(missing), "previous_response_id", "previous_response_not_found")
            raise Refusal(problem) from None
    if any(item["type"] == "item_reference" for item in items):
        items = [await _resolved(store_of(server), item, i, owner) for i, item in enumerate(items)]
    return await asyncio.to_thread(asked.request, history, items), items


async def _resolved(store: ResponseStore, item: Item, index: int, owner: str) -> Item:
    if item["type"] != "item_reference":
        return item
    try:
        return await store.item(item["id"], owner)
    except Missing as missing:
        raise FieldError(f"input[{index}]: {missing}", f"input[{index}].id") from None


class _Kept:
    """The reply to a request, which is stored before its last words are sent: what a client has seen end is there."""

    def __init__(
        self,
        server: Server,
        request: Request,
        asked: Asked,
        wanted: ChatRequest,
        items: Sequence[Item],
        body: Mapping[str, Any],
    ) -> None:
        self._server, self._asked, self._items = server, asked, items
        self._owner = server.principal(request).key
        self._streams = wanted.stream
        self._saving: asyncio.Future[None] | None = None
        self._reply: Reply = server.reply(request, wanted, self._answer, self._stream, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def after_saving(message: Message) -> None:
            # A stream's head says nothing yet; an answer's does, and an error would have a head of its own.
            if self._saving is not None and not (self._streams and message["type"] == "http.response.start"):
                saving, self._saving = self._saving, None
                await asyncio.shield(saving)
            await send(message)

        await self._reply(scope, receive, after_saving)

    def _answer(self, wanted: ChatRequest | TextRequest, found: Answer, context: Context) -> dict[str, Any]:
        response = answer(self._asked, found, context)
        self._save(response, context)
        return response

    def _stream(self, wanted: ChatRequest | TextRequest, context: Context) -> Encoder:
        return Stream(self._asked, context, lambda response: self._save(response, context))

    def _save(self, response: Mapping[str, Any], context: Context) -> None:
        if not self._asked.store:
            return
        body = {name: value for name, value in response.items() if name != "output"}
        items = with_ids(self._items, context.id)
        stored = Stored(response_id(context), self._owner, body, items, response["output"], self._asked.previous)
        self._saving = asyncio.wrap_future(store_of(self._server).keep(stored))


# What is stored ------------------------------------------------------------------------------------------------------
async def retrieve(request: Request, server: Server) -> Response:
    """Gives a stored response."""
    await _query(request, server, RETRIEVE)
    stored = await _stored(request, server)
    return await _json({**stored.body, "output": stored.output})


async def delete(request: Request, server: Server) -> Response:
    """Deletes a stored response."""
    id = request.path_params["response_id"]
    try:
        await store_of(server).delete(id, server.principal(request).key)
    except Missing as missing:
        raise _not_found(missing) from None
    return await _json({"id": id, "object": "response", "deleted": True})


async def cancel(request: Request, server: Server) -> Response:
    """Refuses: none runs in the background."""
    stored = await _stored(request, server)
    raise Refusal(
        Problem("invalid", f"{stored.id} has ended: only a response that runs in the background is cancelled")
    )


async def input_items(request: Request, server: Server) -> Response:
    """Lists the input of a stored response."""
    query = await _query(request, server, INPUT_ITEMS)
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= 100):
        raise FieldError(f"limit is {values.kind(limit)}: must be 1 to 100", "limit")
    order = values.one_of(query.get("order", "desc"), "order", ("asc", "desc"))
    items = list((await _stored(request, server)).input)
    if order == "desc":
        items.reverse()
    if "after" in query:
        after = next((i for i, item in enumerate(items) if item["id"] == query["after"]), None)
        if after is None:
            raise FieldError(f"after is {values.kind(query['after'])}: no item of this response has that id", "after")
        items = items[after + 1 :]
    page = items[: int(limit)]
    return await _json(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }
    )


async def _query(request: Request, server: Server, table: Table) -> dict[str, str]:
    """The parameters of the URL. Raises FieldError."""
    call = await server.call(request)
    # Clients write a list as include=..., as include[]=... or with an index.
    names = {name: "include" if name.partition("[")[0] == "include" else name for name in call.query}
    checked({names[name]: value for name, value in call.query.items()}, table, call.dropped)
    for name, value in request.query_params.multi_items():
        if names.get(name) == "include":
            values.one_of(value, "include", INCLUDES)
    return dict(call.query)


async def _stored(request: Request, server: Server) -> Stored:
    try:
        return await store_of(server).find(request.path_params["response_id"], server.principal(request).key)
    except Missing as missing:
        raise _not_found(missing) from None


def _not_found(missing: Missing) -> Refusal:
    return Refusal(Problem("not_found", str(missing), "response_id", "response_not_found"))


async def _json(document: Mapping[str, Any]) -> Response:
    from starlette.responses import Response

    from herder.serve.reply import encoded

    return Response(await asyncio.to_thread(encoded, document), media_type="application/json")


ROUTES: tuple[Route, ...] = (
    Other("POST", "/v1/responses", create),
    Other("POST", "/v1/responses/input_tokens", input_tokens),
    Other("GET", "/v1/responses/{response_id}", retrieve),
    Other("DELETE", "/v1/responses/{response_id}", delete),
    Other("POST", "/v1/responses/{response_id}/cancel", cancel),
    Other("GET", "/v1/responses/{response_id}/input_items", input_items),
)
