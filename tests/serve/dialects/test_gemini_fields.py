"""Gemini's tables against the request types of its own client, which sends them as other objects than it takes."""

from __future__ import annotations

from google.genai import types
from pydantic import BaseModel

from herder.serve.dialects.gemini_fields import COUNT_TOKENS, EMBED, GENERATE
from herder.serve.fields import Table
from tests.serve.dialects.sdk_fields import assert_complete, paths

# Fields of the client's configurations that tell the client itself what to do.
CLIENTS_OWN = {"automaticContinuation", "automaticFunctionCalling", "httpOptions", "shouldReturnHttpResponse"}
SCHEMAS = ("tools[].functionDeclarations[].parameters", "tools[].functionDeclarations[].response")


class Conversation(BaseModel):
    contents: list[types.Content]
    systemInstruction: types.Content
    tools: list[types.Tool]
    toolConfig: types.ToolConfig


class Generate(Conversation):
    model: str
    generationConfig: types.GenerationConfig
    safetySettings: list[types.SafetySetting]


class Count(Conversation):
    generationConfig: dict[str, object]


class Embed(BaseModel):
    model: str
    content: types.Content


def outer(table: Table) -> set[str]:
    return {field.name for field in table.fields if "." not in field.name}


def test_generate_content() -> None:
    """What the configuration has beside generationConfig, and what of it goes into that."""
    inside = outermost(types.GenerationConfig)
    rest = outermost(types.GenerateContentConfig) - CLIENTS_OWN - inside - outermost(Generate)
    assert_complete(
        GENERATE,
        Generate,
        whole=(*SCHEMAS, "generationConfig.responseSchema"),
        added=rest - {"imageConfig"} | {"generationConfig.imageConfig"},
    )


def test_count_tokens() -> None:
    assert outermost(types.CountTokensConfig) - CLIENTS_OWN <= outer(COUNT_TOKENS)
    assert_complete(COUNT_TOKENS, Count, whole=SCHEMAS, added=["generateContentRequest"])


def test_embed_content() -> None:
    assert_complete(EMBED, Embed, added=outermost(types.EmbedContentConfig) - CLIENTS_OWN)


def outermost(kind: type) -> set[str]:
    return {path for path in paths(kind) if "." not in path and "[" not in path}
