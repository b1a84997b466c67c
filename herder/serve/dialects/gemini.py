"""Gemini's API: generateContent, streamGenerateContent, countTokens, embedContent, batchEmbedContents, models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from herder.core.request import Constraint
from herder.serve import values
from herder.serve.dialect import Call, Context, Embed, Generate, Other, Route
from herder.serve.dialects import gemini_fields as fields
from herder.serve.dialects import gemini_stream
from herder.serve.dialects.gemini_contents import Reader, repeated
from herder.serve.dialects.gemini_schema import json_schema
from herder.serve.dialects.gemini_stream import Generation, answer, stream
from herder.serve.fields import FieldError
from herder.serve.wire import EmbedRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from herder.serve.catalogue import Card
    from herder.serve.server import Server

NAME = "gemini"
TABLES = (fields.GENERATE, fields.STREAM, fields.COUNT_TOKENS, fields.EMBED, fields.BATCH_EMBED)
error = gemini_stream.error

_PLAIN, _JSON, _ENUM = "text/plain", "application/json", "text/x.enum"


def parse(call: Call) -> Generation:
    """Raises FieldError."""
    return _generation(Reader(fields.GENERATE, call.dropped), call, to_answer=True)


def parse_stream(call: Call) -> Generation:
    """Raises FieldError. alt=sse in the query asks for server-sent events, otherwise it is one JSON array."""
    alt = call.query.get("alt", call.query.get("$alt", "json"))
    sse = values.one_of(alt, "alt", ("sse", "json")) == "sse"
    return replace(parse(call), stream=True, sse=sse)


def parse_count(call: Call) -> Generation:
    """What tokens are to be counted of. Raises FieldError."""
    reader = Reader(fields.COUNT_TOKENS, call.dropped)
    body = reader.fields(call.body)
    name = "generateContentRequest"
    if name not in body:
        return _generation(reader, call, to_answer=False)
    if len(body) > 1:
        raise FieldError(f"{name} is given with others: it stands for them all", name)
    inner = replace(call, body=values.mapping(body[name], name))
    return _generation(Reader(fields.GENERATE, call.dropped), inner, to_answer=False)


def _generation(reader: Reader, call: Call, *, to_answer: bool) -> Generation:
    body = reader.fields(call.body)
    messages = reader.messages(body, to_answer=to_answer)
    tools, choice = reader.tools(body)
    _check_safety(body, reader)
    if "serviceTier" in body:
        tier = values.text(body["serviceTier"], "serviceTier").lower().removeprefix("service_tier_")
        values.one_of(tier, "serviceTier", ("unspecified", "standard"))
    # countTokens has no fields of its own for it.
    config = Reader(fields.GENERATE, call.dropped).fields(body.get("generationConfig", {}), _CONFIG)
    return Generation(
        model=call.path["model"],
        messages=messages,
        tools=tools,
        tool_choice=choice,
        options=_options(config),
        n=values.integer(config.get("candidateCount", 1), f"{_CONFIG}.candidateCount", 1, fields.MAX_CANDIDATES),
        constraint=_constraint(config),
        reasoning=_thoughts(config, Reader(fields.GENERATE, call.dropped)),
        deadline=values.number(body["deadline"], "deadline", 0.001, 86400) if "deadline" in body else None,
        truncate="truncatePromptTokens" in body and _truncated(body["truncatePromptTokens"]),
    )


_CONFIG = "generationConfig"


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, option, least, most in (
        ("temperature", "temperature", 0, 2),
        ("topP", "top_p", 0, 1),
        ("presencePenalty", "presence_penalty", -2, 2),
        ("frequencyPenalty", "frequency_penalty", -2, 2),
    ):
        if name in config:
            found[option] = values.number(config[name], f"{_CONFIG}.{name}", least, most)
    if found.get("top_p") == 0:
        raise FieldError(f"{_CONFIG}.topP is 0: must be above 0", f"{_CONFIG}.topP")
    for name, option, least, most in (
        ("topK", "top_k", 0, 2**31 - 1),
        ("maxOutputTokens", "max_tokens", 1, 2**31 - 1),
        ("seed", "seed", -(2**63), 2**63 - 1),
    ):
        if name in config:
            found[option] = values.integer(config[name], f"{_CONFIG}.{name}", least, most)
    if "seed" in found:
        found["seed"] %= 2**64  # theirs is signed
    if "stopSequences" in config:
        where = f"{_CONFIG}.stopSequences"
        stops = values.listed(config["stopSequences"], where, fields.MAX_STOPS)
        found["stop"] = tuple(values.text(one, f"{where}[{i}]", 1024) for i, one in enumerate(stops))
        if "" in found["stop"]:
            raise FieldError(f"{where} has an empty text: every answer would end at once", where)
    wanted = values.boolean(config.get("responseLogprobs", False), f"{_CONFIG}.responseLogprobs")
    where = f"{_CONFIG}.logprobs"
    top = values.integer(config.get("logprobs", 0), where, 0, fields.MAX_LOGPROBS)
    if wanted:
        found["logprobs"] = top
    elif top:
        raise FieldError(f"{where} is given, but responseLogprobs is not true: set it, or leave this out", where)
    return found


def _constraint(config: Mapping[str, Any]) -> Constraint | None:
    where = f"{_CONFIG}.responseMimeType"
    kind = values.one_of(config.get("responseMimeType", _PLAIN), where, (_PLAIN, _JSON, _ENUM))
    if "responseSchema" in config and "responseJsonSchema" in config:
        inside = f"{_CONFIG}.responseJsonSchema"
        raise FieldError(f"{inside} and responseSchema are both given: leave one out", inside)
    schema = None
    if "responseSchema" in config:
        schema = json_schema(config["responseSchema"], f"{_CONFIG}.responseSchema", closed=True)
    elif "responseJsonSchema" in config:
        schema = values.schema(config["responseJsonSchema"], f"{_CONFIG}.responseJsonSchema")
    if kind == _JSON:
        return Constraint("json") if schema is None else Constraint("schema", schema)
    if kind == _PLAIN:
        if schema is None:
            return None
        raise FieldError(f"{where} is {_PLAIN}, but there is a schema: set {_JSON} or {_ENUM}", where)
    choices = values.listed((schema or {}).get("enum", ()), f"{_CONFIG}.responseSchema.enum", least=1)
    return Constraint(
        "choice", tuple(values.text(one, f"{_CONFIG}.responseSchema.enum[{i}]") for i, one in enumerate(choices))
    )


def _thoughts(config: Mapping[str, Any], reader: Reader) -> bool:
    """Whether reasoning is shown."""
    where = f"{_CONFIG}.thinkingConfig"
    given = reader.fields(config.get("thinkingConfig", {}), where)
    shown = values.boolean(given.get("includeThoughts", False), f"{where}.includeThoughts")
    inside = f"{where}.thinkingBudget"
    budget = values.integer(given.get("thinkingBudget", -1), inside)
    if budget not in (-1, 0):
        raise FieldError(
            f"{inside} is {values.kind(budget)}: reasoning has no limit of its own, leave it out, maxOutputTokens "
            "limits the whole",
            inside,
        )
    return shown and budget != 0


def _check_safety(body: Mapping[str, Any], reader: Reader) -> None:
    for i, value in enumerate(values.listed(repeated(body.get("safetySettings", ())), "safetySettings", 64)):
        where = f"safetySettings[{i}]"
        given = reader.fields(value, where)
        values.text(given.get("category"), f"{where}.category", 128)
        threshold = values.text(given.get("threshold"), f"{where}.threshold").upper()
        if threshold not in ("BLOCK_NONE", "OFF"):
            raise FieldError(
                f"{where}.threshold is {values.kind(threshold)}: nothing is filtered here, expected BLOCK_NONE or OFF",
                f"{where}.threshold",
            )


def _truncated(value: Any) -> bool:
    if values.integer(value, "truncatePromptTokens") != -1:
        raise FieldError(
            f"truncatePromptTokens is {values.kind(value)}: only -1 is known, which keeps what the window holds",
            "truncatePromptTokens",
        )
    return True


# Embeddings ----------------------------------------------------------------------------------------------------------
def parse_embed(call: Call) -> EmbedRequest:
    """Raises FieldError."""
    text, dimensions = _embedded(call.body, "", call)
    return EmbedRequest(call.path["model"], (text,), dimensions)


def parse_batch(call: Call) -> EmbedRequest:
    """Raises FieldError."""
    body = Reader(fields.BATCH_EMBED, call.dropped).fields(call.body)
    given = values.listed(repeated(body.get("requests", ())), "requests", fields.MAX_EMBEDDINGS, 1)
    found = [_embedded(value, f"requests[{i}]", call) for i, value in enumerate(given)]
    lengths = {dimensions for _, dimensions in found}
    if len(lengths) > 1:
        raise FieldError("requests have different values of outputDimensionality: send them apart", "requests")
    return EmbedRequest(call.path["model"], tuple(text for text, _ in found), lengths.pop())


def _embedded(value: Any, where: str, call: Call) -> tuple[str, int | None]:
    """One text and the length of its vector."""
    try:
        reader = Reader(fields.EMBED, call.dropped)
        body = reader.fields(value)
        dimensions = body.get("outputDimensionality")
        if dimensions is not None:
            dimensions = values.integer(dimensions, "outputDimensionality", 1, 2**31 - 1)
        return reader.text(body.get("content"), "content"), dimensions
    except FieldError as error:
        if not where:
            raise
        raise FieldError(f"{where}: {error}", f"{where}.{error.field}" if error.field else where) from None


def embedding(request: EmbedRequest, vectors: list[list[float]], tokens: int, context: Context) -> dict[str, Any]:
    return {"embedding": {"values": vectors[0]}, "usageMetadata": {"promptTokenCount": tokens}}


def embeddings(request: EmbedRequest, vectors: list[list[float]], tokens: int, context: Context) -> dict[str, Any]:
    found = [{"values": vector} for vector in vectors]
    return {"embeddings": found, "usageMetadata": {"promptTokenCount": tokens}}


# Tokens and models ---------------------------------------------------------------------------------------------------
async def count_tokens(request: Request, server: Server) -> Response:
    """The tokens of the prompt that a request would have."""
    from starlette.responses import JSONResponse

    from herder.serve import prompts

    wanted = parse_count(await server.call(request))
    async with server.use_for(request, wanted.model, wanted) as (llm, wanted):
        return JSONResponse({"totalTokens": await prompts.count_tokens(llm, wanted)})


def model(card: Card, name: str) -> dict[str, Any]:
    """One model, by its served name or an alias."""
    methods = ["generateContent", "countTokens"] if card.chats else []
    found: dict[str, Any] = {
        "name": f"models/{name}",
        "baseModelId": card.name,
        "version": "1",
        "displayName": name,
        "supportedGenerationMethods": [*methods, "embedContent"],
    }
    if card.context:  # known when the files are here
        found |= {"inputTokenLimit": card.context, "outputTokenLimit": card.context}
    return found


def page(models: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the list: pageSize entries from pageToken on. Raises FieldError."""
    size, start = query.get("pageSize", "1000"), query.get("pageToken") or "0"
    for name, value in (("pageSize", size), ("pageToken", start)):
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise FieldError(f"{name} is {values.kind(value)}: expected a number", name)
    first, end = int(start), int(start) + min(max(int(size), 1), 1000)
    more = {"nextPageToken": str(end)} if end < len(models) else {}
    return {"models": models[first:end], **more}


async def list_models(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    found = [model(card, name) for card, name in await server.cards(request)]
    return JSONResponse(page(found, request.query_params))


async def get_model(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    name = request.path_params["model"]
    return JSONResponse(model(await server.card(request, name), name))


def _routes(version: str) -> tuple[Route, ...]:
    path = f"{version}/models/{{model:path}}"
    return (
        Generate("POST", f"{path}:generateContent", parse, answer, stream),
        Generate("POST", f"{path}:streamGenerateContent", parse_stream, answer, stream),
        Other("POST", f"{path}:countTokens", count_tokens),
        Embed("POST", f"{path}:embedContent", parse_embed, embedding),
        Embed("POST", f"{path}:batchEmbedContents", parse_batch, embeddings),
    )


# The lists of models are under /v1beta only: under /v1 they are another vendor's.
ROUTES: tuple[Route, ...] = (
    *_routes("/v1beta"),
    *_routes("/v1"),
    Other("GET", "/v1beta/models", list_models),
    Other("GET", "/v1beta/models/{model:path}", get_model),
)
