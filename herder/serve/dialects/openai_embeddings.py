"""OpenAI's embeddings: POST /v1/embeddings, as floats or as base64."""

from __future__ import annotations

import base64
from array import array
from sys import byteorder
from typing import Any

from herder.serve import values
from herder.serve.dialect import Call, Context, Embed
from herder.serve.dialects import openai_error, openai_options
from herder.serve.dialects.openai_prompts import prompts
from herder.serve.fields import Table, checked, refused, supported, translated
from herder.serve.wire import EmbedRequest

NAME = "openai_embeddings"
MAX_INPUTS = 2048

TABLE = Table(
    "POST /v1/embeddings",
    "openai.types.EmbeddingCreateParams",
    (
        supported("model", "a served name or an alias"),
        supported("input", f"text, token ids, or a list of either; at most {MAX_INPUTS}"),
        supported("dimensions", "the leading values, normalized again"),
        supported("encoding_format", "float, or base64 of little-endian float32"),
        translated("user", "a label that changes nothing; it is not kept"),
    ),
    (
        translated("truncate_prompt_tokens", "-1: an input over the window loses its end"),
        supported("normalize", "false leaves the vectors as long as they are"),
        refused("priority", "the server serves all in turn", 0),
        refused("embed_dtype", "values are float32", "float32"),
        refused("endianness", "values are little-endian", "little"),
        refused("add_special_tokens", "the tokens are those of /v1/completions", True),
    ),
)
TABLES = (TABLE,)
error = openai_error.error


def parse(call: Call) -> EmbedRequest:
    """Raises FieldError."""
    body = openai_options.given(checked(call.body, TABLE, call.dropped))
    values.one_of(body.get("encoding_format", "float"), "encoding_format", ("float", "base64"))
    if "user" in body:
        values.text(body["user"], "user", 1024)
    dimensions = body.get("dimensions")
    truncate = body.get("truncate_prompt_tokens")
    return EmbedRequest(
        model=openai_options.model(body),
        inputs=prompts(body, "input", MAX_INPUTS),
        dimensions=None if dimensions is None else values.integer(dimensions, "dimensions", 1, 2**31 - 1),
        normalize=values.boolean(body.get("normalize", True), "normalize"),
        truncate=truncate is not None and openai_options.truncation(truncate),
    )


def answer(request: EmbedRequest, vectors: list[list[float]], tokens: int, context: Context) -> dict[str, Any]:
    encode = _base64 if context.body.get("encoding_format") == "base64" else list
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": encode(row)} for i, row in enumerate(vectors)],
        "model": context.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(vector: list[float]) -> str:
    packed = array("f", vector)
    if byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


ROUTES = (Embed("POST", "/v1/embeddings", parse, answer),)
