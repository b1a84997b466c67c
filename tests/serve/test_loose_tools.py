"""Tools whose schemas cannot be enforced whole, as MCP servers have them, from each vendor's side."""

from __future__ import annotations

from typing import Any, cast

import pytest

from herder.chat.format import CallStyle, ChatFormat
from herder.serve.server import Server
from tests.serve.models import tiny
from tests.serve.test_app import BODY, CHAT, Client, run

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "array", "items": {"enum": ["sky"]}, "uniqueItems": True, "maxItems": 2}},
    "required": ["at"],
    "additionalProperties": False,
}
USER = [{"role": "user", "content": "hello"}]


def function(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "parameters": SCHEMA, **more}}


BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": USER, "tools": [function()], "tool_choice": "required", "max_tokens": 200}),
    (CHAT, {"messages": USER, "tools": [function()], "tool_choice": "required", "max_tokens": 200, "stream": True}),
    (
        "/v1/responses",
        {
            "input": "hello",
            "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}],
            "tool_choice": "required",
            "max_output_tokens": 200,
            "store": False,
        },
    ),
    (
        "/v1/messages",
        {
            "messages": USER,
            "tools": [{"name": "look", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any"},
            "max_tokens": 200,
        },
    ),
    (
        "/v1beta/models/tiny:generateContent",
        {
            "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
            "tools": [{"functionDeclarations": [{"name": "look", "parametersJsonSchema": SCHEMA}]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
            "generationConfig": {"maxOutputTokens": 200},
        },
    ),
    ("/api/chat", {"messages": USER, "tools": [function()], "stream": False, "options": {"num_predict": 60}}),
]


@pytest.mark.parametrize(("path", "body"), BODIES, ids=[path for path, _ in BODIES])
def test_every_vendors_tools_are_held_to_what_can_be_enforced(path: str, body: dict[str, Any]) -> None:
    async def test(client: Client, server: Server) -> None:
        model = {} if "v1beta" in path else {"model": "tiny"}
        answer = await client.post(path, json={**model, **body})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-herder-unenforced"] == "look.properties.at.uniqueItems"
        if path != "/api/chat":  # where a call cannot be required
            assert "look" in answer.text and ("sky" in answer.text or body.get("stream"))

    run(test)


def test_what_is_strict_is_held_to_the_whole_or_refused() -> None:
    async def test(client: Client, server: Server) -> None:
        strict = await client.post(CHAT, json={**BODY, "tools": [function(strict=True)]})
        assert strict.status_code == 400 and "uniqueItems" in strict.json()["error"]["message"]
        tool = {"name": "look", "input_schema": SCHEMA, "strict": True}
        body = {"model": "tiny", "messages": USER, "max_tokens": 4, "tools": [tool]}
        refused = await client.post("/v1/messages", json=body)
        assert refused.status_code == 400 and "uniqueItems" in refused.json()["error"]["message"]
        loose = await client.post(CHAT, json={**BODY, "tools": [function(strict=False)]})
        assert loose.status_code == 200 and "x-herder-unenforced" not in loose.headers
        whole = await client.post(CHAT, json={**BODY, "tools": [function(parameters={"type": "object"}, strict=True)]})
        assert whole.status_code == 200
        nonsense = await client.post(CHAT, json={**BODY, "tools": [function(parameters={"type": "herd"})]})
        assert nonsense.status_code == 400, "a schema that says nothing that can be meant"

    run(test)


class Python:
    """The tiny models' chat format, with calls in Python's notation."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny()[1], name)

    def call_style(self, **options: Any) -> CallStyle:
        return CallStyle("python")


def test_keywords_are_held_to_no_schema_of_the_whole() -> None:
    branches = [{"required": ["at"]}, {"required": ["near"], "properties": {"near": {"type": "boolean"}}}]
    schema = {key: value for key, value in SCHEMA.items() if key != "required"} | {"anyOf": branches}

    async def test(client: Client, server: Server) -> None:
        async with server.models.use("tiny") as llm:
            llm.chat_format = cast(ChatFormat, Python())
        asked = {**BODY, "tool_choice": "required", "max_tokens": 200}
        answer = await client.post(CHAT, json={**asked, "tools": [function(parameters=schema)]})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-herder-unenforced"] == "look.properties.at.uniqueItems, look.anyOf"
        strict = await client.post(
            CHAT, json={**asked, "tools": [function(parameters={"anyOf": branches}, strict=True)]}
        )
        assert strict.status_code == 400 and "anyOf, which no list of keywords" in strict.text

    run(test)
