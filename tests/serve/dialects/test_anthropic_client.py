"""Anthropic's own client against a live server: what programs do, and the exceptions they catch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel
from starlette.requests import HTTPConnection

import herder
from herder.runtime.fake import FakeExecutor
from herder.serve.config import Config
from herder.serve.dialect import Problem
from herder.serve.gate import Open, Principal
from herder.serve.server import Server
from tests.serve.dialects.test_anthropic import IMAGE, USER
from tests.serve.live import Live, live
from tests.serve.models import CONFIG, LIMITS, fake_llm, server_of

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "of a city", "input_schema": PARAMETERS}
SAID: dict[str, Any] = {"model": "tiny", "messages": [USER], "max_tokens": 8}


def connected(served: Live, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live(fake_llm(), names=("tiny",)) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Live) -> Iterator[anthropic.Anthropic]:
    with connected(served) as made:
        yield made


def test_messages(client: anthropic.Anthropic) -> None:
    found = client.messages.create(**SAID, system="be brief", stop_sequences=["zzzz"], metadata={"user_id": "u"})
    assert found.type == "message" and found.role == "assistant" and found.model == "tiny"
    assert found._request_id and found.id.startswith("msg_") and found.stop_reason in ("end_turn", "max_tokens")
    assert 0 < found.usage.output_tokens <= 8 and found.usage.input_tokens > 0
    again = client.messages.create(**SAID, system="be brief")
    assert again.content == found.content and again.usage.cache_read_input_tokens is not None


def test_streams_say_what_answers_say(client: anthropic.Anthropic) -> None:
    said = {**SAID, "max_tokens": 24, "extra_body": {"temperature": 1.0, "seed": 5}}
    whole = client.messages.create(**said)
    with client.messages.stream(**said) as stream:
        text = "".join(stream.text_stream)
        joined = stream.get_final_message()
    assert text == "".join([block.text for block in whole.content if block.type == "text"]) and text
    assert (joined.stop_reason, joined.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert joined.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in client.messages.create(**said, stream=True)]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**{**SAID, "max_tokens": 24})
    text = "".join([block.text for block in whole.content if block.type == "text"])
    stop = text[4:6]
    cut = client.messages.create(**{**SAID, "max_tokens": 24}, stop_sequences=[stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert "".join([block.text for block in cut.content if block.type == "text"]) == text[: text.index(stop)]


def test_tools(client: anthropic.Anthropic) -> None:
    said: dict[str, Any] = {**SAID, "max_tokens": 400, "tools": [WEATHER]}
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    for chosen in (choice, {"type": "any", "disable_parallel_tool_use": True}):
        found = client.messages.create(**said, tool_choice=chosen)
        [call] = [block for block in found.content if block.type == "tool_use"]
        assert found.stop_reason == "tool_use" and call.name == "weather" and list(call.input) == ["city"]
    with client.messages.stream(**said, tool_choice=choice) as stream:
        [streamed] = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    assert streamed.id != call.id and list(streamed.input) == ["city"]
    # The answer goes back as the client's own object.
    turns = [USER, {"role": "assistant", "content": found.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(model="tiny", max_tokens=8, messages=turns, tools=[WEATHER])
    assert after.usage.input_tokens + (after.usage.cache_read_input_tokens or 0) > found.usage.input_tokens


def test_schemas(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    found = client.messages.create(**{**SAID, "max_tokens": 200}, output_config={"format": form})
    [block] = found.content
    assert block.type == "text" and json.loads(block.text)["a"] in (1, 2)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**SAID, output_config={"format": {"type": "json_schema", "schema": {"type": "mist"}}})


class Answer(BaseModel):
    a: bool


def test_helpers_of_the_client(client: anthropic.Anthropic) -> None:
    """What parses answers, and the resource of beta features, whose requests have a query and a header more."""
    found = client.messages.parse(**{**SAID, "max_tokens": 100}, output_format=Answer)
    assert isinstance(found.parsed_output, Answer)
    beta = client.beta.messages.create(**SAID, betas=["context-management-2025-06-27"])
    assert beta.usage.output_tokens
    with pytest.raises(anthropic.BadRequestError, match="context_management is not supported"):
        client.beta.messages.create(**SAID, context_management={"edits": [{"type": "clear_tool_uses_20250919"}]})


def test_counts_are_those_of_the_answer(client: anthropic.Anthropic) -> None:
    said: dict[str, Any] = {"model": "tiny", "messages": [USER], "system": "be brief", "tools": [WEATHER]}
    usage = client.messages.create(**said, max_tokens=1).usage
    counted = client.messages.count_tokens(**said).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_models(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list(limit=1)] == ["tiny", "tiny-alias"]
    assert client.models.retrieve("tiny-alias").type == "model"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("other")


# Errors --------------------------------------------------------------------------------------------------------------
def test_bad_requests(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="frobnicate is not a field") as caught:
        client.messages.create(**SAID, extra_body={"frobnicate": 1})
    assert caught.value.type == "invalid_request_error" and caught.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(**{**SAID, "messages": [{"role": "user", "content": [IMAGE]}]})
    with pytest.raises(anthropic.BadRequestError, match=str(LIMITS.context)):
        client.messages.create(**{**SAID, "messages": [{"role": "user", "content": "x" * 5000}]})
    with pytest.raises(anthropic.BadRequestError, match="budget_tokens is not supported"):
        client.messages.create(**SAID, thinking={"type": "enabled", "budget_tokens": 1024})
    with pytest.raises(anthropic.NotFoundError, match="claude-9"):
        client.messages.create(**{**SAID, "model": "claude-9"})
    with pytest.raises(anthropic.BadRequestError):
        client.messages.count_tokens(model="tiny", messages=[])


class Doorkeeper(Open):
    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        key = connection.headers.get("authorization", "").removeprefix("Bearer ")
        return Principal(key) if key != "wrong" else Problem("unauthorized", "no such key")

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        kinds: dict[str, Any] = {
            "poor": "rate_limited",
            "other": "forbidden",
            "late": "overloaded",
            "soon": "unavailable",
        }
        return Problem(kinds[principal.key], "no", retry_after=7.0) if principal.key in kinds else None


def test_keys_and_limits() -> None:
    def guarded(config: Config) -> Server:
        server = server_of(fake_llm(), config=config, names=("tiny",))
        server.gate = Doorkeeper()
        return server

    expected: dict[str, tuple[type[anthropic.APIStatusError], str]] = {
        "wrong": (anthropic.AuthenticationError, "authentication_error"),
        "other": (anthropic.PermissionDeniedError, "permission_error"),
        "poor": (anthropic.RateLimitError, "rate_limit_error"),
        "late": (anthropic.InternalServerError, "overloaded_error"),
        "soon": (anthropic.InternalServerError, "overloaded_error"),
    }
    with live(make=guarded) as served:
        for key, (kind, word) in expected.items():
            with connected(served, key) as client, pytest.raises(kind) as caught:
                client.messages.create(**SAID)
            assert caught.value.type == word
        with connected(served, "right") as client:
            assert client.messages.create(**SAID).usage.output_tokens


def test_failures_in_the_middle_of_a_stream() -> None:
    broken = FakeExecutor(
        LIMITS, dim=CONFIG.dim, fail=lambda number, batch: RuntimeError("secret /path") if number > 4 else None
    )
    with live(fake_llm(broken), names=("tiny",)) as served, connected(served) as client:
        with pytest.raises(anthropic.APIStatusError, match="internal error") as caught:
            list(client.messages.create(**{**SAID, "max_tokens": 200}, stream=True))
        assert "secret" not in str(caught.value)


def test_asyncio(served: Live) -> None:
    async def run() -> None:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as client:
            whole = await client.messages.create(**SAID)
            async with client.messages.stream(**SAID) as stream:
                assert await stream.get_final_text() == "".join([b.text for b in whole.content if b.type == "text"])
            many = await asyncio.gather(*[client.messages.create(**SAID) for _ in range(6)])
            assert all(one.content == whole.content for one in many)

    asyncio.run(run())


# A real model --------------------------------------------------------------------------------------------------------
def test_the_default_model(smollm2: Path) -> None:
    llm = herder.load(smollm2, context=1024)
    question = "What is the capital of France? Answer with one word."
    said: dict[str, Any] = {"model": "smollm2", "max_tokens": 16, "messages": [{"role": "user", "content": question}]}
    with live(llm, names=("smollm2",)) as served, connected(served) as client:
        found = client.messages.create(**said, extra_body={"temperature": 0})
        [block] = found.content
        assert block.type == "text" and "Paris" in block.text and found.stop_reason == "end_turn"
        with client.messages.stream(**said, extra_body={"temperature": 0}) as stream:
            assert stream.get_final_text() == block.text
        schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
        form = {"type": "json_schema", "schema": schema}
        made = client.messages.create(
            **{**said, "max_tokens": 100}, output_config={"format": form}, extra_body={"temperature": 0}
        )
        [block] = made.content
        assert block.type == "text" and "capital" in json.loads(block.text)
