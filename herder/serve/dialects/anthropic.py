"""Anthropic's Messages API: POST /v1/messages, whole and streamed, /v1/messages/count_tokens, and the models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from herder.chat.message import Tool
from herder.core.request import Constraint
from herder.serve import values
from herder.serve.dialect import Call, Generate, Kind, Other, Problem
from herder.serve.dialects import anthropic_fields as fields
from herder.serve.dialects.anthropic_messages import Reader
from herder.serve.dialects.anthropic_stream import answer, error_body, stream
from herder.serve.fields import FieldError, Table, checked
from herder.serve.wire import ChatRequest, Named

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from herder.serve.catalogue import Card
    from herder.serve.server import Server

NAME = "anthropic"
TABLES = (fields.MESSAGES, fields.COUNT_TOKENS)

_STATUS: dict[Kind, int] = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "too_large": 413,
    "rate_limited": 429,
    "overloaded": 529,
    "timeout": 504,
    "internal": 500,
    "unavailable": 503,
}


def error(problem: Problem) -> tuple[int, dict[str, str], dict[str, Any]]:
    """HTTP status, headers, body. The id of the request is in its header."""
    headers = {}
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after)))
    return _STATUS[problem.kind], headers, error_body(problem)


def parse(call: Call) -> ChatRequest:
    """Raises FieldError."""
    reader = Reader(fields.MESSAGES, call.dropped)
    body = _body(call, fields.MESSAGES)
    if "max_tokens" not in body:
        raise FieldError("max_tokens is missing: give the most tokens that the answer may have", "max_tokens")
    options: dict[str, Any] = {"max_tokens": values.integer(body["max_tokens"], "max_tokens", 1)}
    if "temperature" in body:
        options["temperature"] = values.number(body["temperature"], "temperature", 0, 1)
    if "top_p" in body:
        options["top_p"] = _share(body["top_p"], "top_p")
    if "top_k" in body:
        options["top_k"] = values.integer(body["top_k"], "top_k", 0, 2**31 - 1)
    if "min_p" in body:
        options["min_p"] = values.number(body["min_p"], "min_p", 0, 1)
    if "seed" in body:
        options["seed"] = values.integer(body["seed"], "seed", 0, 2**64 - 1)
    if "stop_sequences" in body:
        options["stop"] = _stops(body["stop_sequences"])
    if "metadata" in body:
        metadata = reader.fields(body["metadata"], "metadata")
        values.text(metadata.get("user_id", ""), "metadata.user_id", 1024)
    if "service_tier" in body:
        values.one_of(body["service_tier"], "service_tier", ("auto", "standard_only"))
    deadline = values.number(body["deadline"], "deadline", 0.001, 86400) if "deadline" in body else None
    return _conversation(
        body,
        reader,
        options=options,
        stream=values.boolean(body.get("stream", False), "stream"),
        deadline=deadline,
        truncate="truncate_prompt_tokens" in body and _truncated(body["truncate_prompt_tokens"]),
    )


def parse_count(call: Call) -> ChatRequest:
    """What tokens are to be counted of. Raises FieldError."""
    return _conversation(_body(call, fields.COUNT_TOKENS), Reader(fields.COUNT_TOKENS, call.dropped), to_answer=False)


def _body(call: Call, table: Table) -> dict[str, Any]:
    body = {name: value for name, value in checked(call.body, table, call.dropped).items() if value is not None}
    for name in ("model", "messages"):
        if name not in body:
            raise FieldError(f"{name} is missing", name)
    return body


def _conversation(body: Mapping[str, Any], reader: Reader, *, to_answer: bool = True, **rest: Any) -> ChatRequest:
    """What both requests have: the model, what was said, tools, and the answer's form."""
    if "cache_control" in body:
        reader.cache_control(body["cache_control"], "cache_control")
    system = reader.system(body["system"]) if "system" in body else ""
    tools = _tools(body.get("tools", ()), reader)
    choice, parallel = _tool_choice(body, tools, reader)
    return ChatRequest(
        model=values.text(body["model"], "model", 1024),
        messages=reader.messages(body["messages"], system, to_answer=to_answer),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        reasoning=_thinking(body, reader),
        constraint=_constraint(body, reader),
        **rest,
    )


def _tools(value: Any, reader: Reader) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for i, tool in enumerate(values.listed(value, "tools", fields.MAX_TOOLS)):
        where = f"tools[{i}]"
        kind = values.mapping(tool, where).get("type", "custom")
        if kind not in ("custom", None):
            raise FieldError(
                f"{where}.type is {values.kind(kind)}, a tool of the vendor's own: there are none here, give a custom "
                "tool with an input_schema",
                f"{where}.type",
            )
        given = reader.fields(tool, where)
        name = values.text(given.get("name"), f"{where}.name", 256)
        if not name:
            raise FieldError(f"{where}.name is empty", f"{where}.name")
        if name in tools:
            raise FieldError(f"{where} has the name of another tool, {values.kind(name)}", f"{where}.name")
        description = given.get("description")
        strict = values.boolean(given.get("strict", False), f"{where}.strict")
        values.boolean(given.get("eager_input_streaming", False), f"{where}.eager_input_streaming")
        tools[name] = Tool(
            name,
            None if description is None else values.text(description, f"{where}.description"),
            values.schema(given.get("input_schema"), f"{where}.input_schema"),
            {"strict": True} if strict else {},
        )
    return tuple(tools.values())


def _tool_choice(
    body: Mapping[str, Any], tools: tuple[Tool, ...], reader: Reader
) -> tuple[Literal["auto", "none", "required"] | Named, bool]:
    """The choice, and whether several tools may be called."""
    if "tool_choice" not in body:
        return "auto", True
    given = reader.fields(body["tool_choice"], "tool_choice")
    kind = values.one_of(given.get("type"), "tool_choice.type", ("auto", "any", "tool", "none"))
    if kind in ("any", "tool") and not tools:
        raise FieldError(f"tool_choice is {kind}, but there are no tools: give them", "tool_choice")
    parallel = not values.boolean(
        given.get("disable_parallel_tool_use", False), "tool_choice.disable_parallel_tool_use"
    )
    if kind == "tool":
        name = values.one_of(given.get("name"), "tool_choice.name", [tool.name for tool in tools])
        return Named(name), parallel
    if "name" in given:
        raise FieldError(f"tool_choice.name is given, but its type is {kind}: it names a tool", "tool_choice.name")
    return ("required" if kind == "any" else "none" if kind == "none" else "auto"), parallel


def _thinking(body: Mapping[str, Any], reader: Reader) -> bool:
    """Whether reasoning is shown."""
    if "thinking" not in body:
        return False
    given = reader.fields(body["thinking"], "thinking")
    kind = values.one_of(given.get("type"), "thinking.type", ("adaptive", "enabled", "disabled"))
    display = values.one_of(given.get("display", "summarized"), "thinking.display", ("summarized", "omitted"))
    return kind != "disabled" and display == "summarized"


def _constraint(body: Mapping[str, Any], reader: Reader) -> Constraint | None:
    found = None
    if "output_config" in body:
        found = reader.fields(body["output_config"], "output_config").get("format")
    where = "output_config.format"
    if "output_format" in body:
        if found is not None:
            raise FieldError("output_format and output_config.format are both given: leave one out", "output_format")
        found, where = body["output_format"], "output_format"
    if found is None:
        return None
    given = reader.fields(found, where)
    values.one_of(given.get("type"), f"{where}.type", ("json_schema",))
    return Constraint("schema", values.schema(given.get("schema"), f"{where}.schema"))


def _share(value: Any, where: str) -> float:
    found = values.number(value, where, 0, 1)
    if not found:
        raise FieldError(f"{where} is 0: must be above 0", where)
    return found


def _stops(value: Any) -> tuple[str, ...]:
    stops = values.listed(value, "stop_sequences", fields.MAX_STOPS)
    found = tuple(values.text(one, f"stop_sequences[{i}]", 1024) for i, one in enumerate(stops))
    if "" in found:
        raise FieldError("stop_sequences has an empty text: every answer would end at once", "stop_sequences")
    return found


def _truncated(value: Any) -> bool:
    if values.integer(value, "truncate_prompt_tokens") != -1:
        raise FieldError(
            f"truncate_prompt_tokens is {values.kind(value)}: only -1 is known, which keeps what the window holds",
            "truncate_prompt_tokens",
        )
    return True


async def count_tokens(request: Request, server: Server) -> Response:
    """The tokens of the prompt that a request would have."""
    from starlette.responses import JSONResponse

    from herder.serve import prompts

    wanted = parse_count(await server.call(request))
    async with server.use_for(request, wanted.model, wanted) as (llm, wanted):
        return JSONResponse({"input_tokens": await prompts.count_tokens(llm, wanted)})


def model(card: Card, name: str) -> dict[str, Any]:
    """One model, by its served name or an alias."""
    created = datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z")
    found = {"type": "model", "id": name, "display_name": name, "created_at": created}
    # Known when the files are here.
    return found | ({"max_input_tokens": card.context, "max_tokens": card.context} if card.context else {})


def page(models: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the list: `limit` entries (20) behind after_id, or before before_id. Raises FieldError."""
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= 1000):
        raise FieldError(f"limit is {values.kind(limit)}: expected a number from 1 to 1000", "limit")
    ids = [entry["id"] for entry in models]
    size, first, last = int(limit), 0, len(ids)
    for name in ("after_id", "before_id"):
        if name in query and query[name] not in ids:
            raise FieldError(f"{name} is {values.kind(query[name])}, which is no model of the list", name)
    if "after_id" in query:
        first = ids.index(query["after_id"]) + 1
    if "before_id" in query:
        last = ids.index(query["before_id"])
        first = max(first, last - size)
    found = models[first:last][:size]
    return {
        "data": found,
        "has_more": first > 0 if "before_id" in query else first + len(found) < len(ids),
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
    }


async def list_models(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    found = [model(card, name) for card, name in await server.cards(request)]
    return JSONResponse(page(found, request.query_params))


async def retrieve_model(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    name = request.path_params["model"]
    return JSONResponse(model(await server.card(request, name), name))


# The last two paths are another vendor's too; the header anthropic-version tells whose client asks.
ROUTES = (
    Generate("POST", "/v1/messages", parse, answer, stream),
    Other("POST", "/v1/messages/count_tokens", count_tokens),
    Other("GET", "/v1/models", list_models),
    Other("GET", "/v1/models/{model:path}", retrieve_model),
)
