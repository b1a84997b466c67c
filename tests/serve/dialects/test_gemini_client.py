"""Gemini's own client against a live server: what programs do, and the exceptions they catch."""

from __future__ import annotations

import asyncio
import enum
import json
import math
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel
from starlette.requests import HTTPConnection

import herder
from herder.runtime.fake import FakeExecutor
from herder.serve.config import Config
from herder.serve.dialect import Problem
from herder.serve.gate import Open, Principal
from herder.serve.server import Server
from tests.serve.dialects.test_gemini import PNG
from tests.serve.live import Live, live
from tests.serve.models import CONFIG, LIMITS, fake_llm, server_of

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = types.Tool(
    function_declarations=[types.FunctionDeclaration(name="weather", parameters_json_schema=PARAMETERS)]
)
SHORT = types.GenerateContentConfig(max_output_tokens=8)


def connected(served: Live, key: str = "none", version: str = "v1beta") -> genai.Client:
    options = types.HttpOptions(
        base_url=served.url, api_version=version, retry_options=types.HttpRetryOptions(attempts=1)
    )
    return genai.Client(api_key=key, vertexai=False, http_options=options)


def config(**more: Any) -> types.GenerateContentConfig:
    disabled = types.AutomaticFunctionCallingConfig(disable=True)
    return types.GenerateContentConfig(max_output_tokens=400, automatic_function_calling=disabled, **more)


def calling(mode: str, *names: str) -> types.ToolConfig:
    chosen = types.FunctionCallingConfig(mode=mode, allowed_function_names=list(names) or None)  # type: ignore[arg-type]
    return types.ToolConfig(function_calling_config=chosen)


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live(fake_llm(), names=("tiny",)) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Live) -> Iterator[genai.Client]:
    with connected(served) as made:
        yield made


def test_generate_content(client: genai.Client) -> None:
    found = client.models.generate_content(
        model="tiny",
        contents="hello",
        config=types.GenerateContentConfig(
            system_instruction="be brief", max_output_tokens=8, temperature=0, top_k=40, seed=1, candidate_count=2,
            safety_settings=[types.SafetySetting(category="HARM_CATEGORY_HARASSMENT", threshold="OFF")],
        ),
    )  # fmt: skip
    assert found.candidates is not None and found.usage_metadata is not None
    assert [candidate.index for candidate in found.candidates] == [0, 1]
    assert {candidate.finish_reason for candidate in found.candidates} <= {"STOP", "MAX_TOKENS"}
    usage = found.usage_metadata
    assert usage.candidates_token_count and usage.prompt_token_count
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    assert found.model_version == "tiny" and found.response_id


def test_streams_say_what_answers_say(client: genai.Client, served: Live) -> None:
    said = types.GenerateContentConfig(max_output_tokens=24, temperature=1, seed=5)
    whole = client.models.generate_content(model="tiny-alias", contents="hello", config=said)
    chunks = list(client.models.generate_content_stream(model="tiny-alias", contents="hello", config=said))
    assert "".join([chunk.text or "" for chunk in chunks]) == whole.text and whole.text
    last = chunks[-1]
    assert last.candidates is not None and whole.candidates is not None
    assert last.candidates[0].finish_reason == whole.candidates[0].finish_reason
    assert last.usage_metadata is not None and whole.usage_metadata is not None
    assert last.usage_metadata.candidates_token_count == whole.usage_metadata.candidates_token_count
    # Without alt=sse the stream is an array.
    body = {
        "contents": [{"parts": [{"text": "hello"}]}],
        "generation_config": {"max_output_tokens": 24, "temperature": 1, "seed": 5},
    }
    url = f"{served.url}/v1beta/models/tiny:streamGenerateContent?key=none"
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(asked) as response:
        assert response.headers["content-type"] == "application/json"
        array = [types.GenerateContentResponse.model_validate(one) for one in json.load(response)]
    assert "".join([one.text or "" for one in array]) == whole.text


def test_logprobs(client: genai.Client) -> None:
    asked = types.GenerateContentConfig(max_output_tokens=6, response_logprobs=True, logprobs=3)
    found = client.models.generate_content(model="tiny", contents="hello", config=asked)
    assert found.candidates is not None
    result = found.candidates[0].logprobs_result
    assert result is not None and result.chosen_candidates and result.top_candidates
    for chosen, top in zip(result.chosen_candidates, result.top_candidates, strict=True):
        assert chosen.log_probability is not None and chosen.log_probability <= 0
        assert top.candidates is not None and len(top.candidates) == 3


def test_functions(client: genai.Client) -> None:
    for tool_config in (calling("ANY"), calling("ANY", "weather")):
        found = client.models.generate_content(
            model="tiny", contents="hello", config=config(tools=[WEATHER], tool_config=tool_config)
        )
        calls = found.function_calls
        assert calls and calls[0].name == "weather" and calls[0].args is not None and list(calls[0].args) == ["city"]
    streamed = client.models.generate_content_stream(
        model="tiny", contents="hello", config=config(tools=[WEATHER], tool_config=calling("ANY"))
    )
    pieces = [call for chunk in streamed for call in chunk.function_calls or []]
    assert pieces and pieces[0].name == "weather" and list(pieces[0].args or {}) == ["city"]
    # The answer goes back as the client's own object.
    assert found.candidates is not None and found.candidates[0].content is not None
    result = types.Part.from_function_response(name="weather", response={"result": "rain"})
    turns = [types.UserContent("hello"), found.candidates[0].content, types.Content(role="user", parts=[result])]
    after = client.models.generate_content(model="tiny", contents=turns, config=SHORT)
    assert after.usage_metadata is not None and after.usage_metadata.prompt_token_count


def test_chats(client: genai.Client) -> None:
    """A streamed turn comes back in as many pieces as it had."""
    chat = client.chats.create(model="tiny", config=SHORT)
    assert list(chat.send_message_stream("hello"))
    assert chat.send_message("and now?").usage_metadata is not None


class Answer(BaseModel):
    a: bool
    b: bool | None


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def test_forms_of_answers(client: genai.Client) -> None:
    def asked(**form: Any) -> types.GenerateContentResponse:
        return client.models.generate_content(model="tiny", contents="hello", config=config(**form))

    found = asked(response_mime_type="application/json", response_schema=Answer)
    assert isinstance(found.parsed, Answer)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    found = asked(response_mime_type="application/json", response_json_schema=schema)
    assert json.loads(found.text or "")["a"] in (1, 2)
    found = asked(response_mime_type="text/x.enum", response_schema=Colour)
    assert found.text in ("red", "blue") and found.parsed in list(Colour)
    with pytest.raises(errors.ClientError):
        asked(response_mime_type="application/json", response_json_schema={"type": "mist"})


def test_counts(client: genai.Client) -> None:
    found = client.models.generate_content(model="tiny", contents="hello", config=SHORT)
    counted = client.models.count_tokens(model="tiny", contents="hello")
    assert found.usage_metadata is not None and counted.total_tokens == found.usage_metadata.prompt_token_count


def test_embeddings(client: genai.Client, served: Live) -> None:
    found = client.models.embed_content(model="tiny", contents=["one", "two"])
    assert found.embeddings is not None and len(found.embeddings) == 2
    first = found.embeddings[0].values
    assert first is not None and math.fsum(x * x for x in first) == pytest.approx(1.0, abs=1e-5)
    short = types.EmbedContentConfig(output_dimensionality=4)
    found = client.models.embed_content(model="tiny", contents="one", config=short)
    assert found.embeddings is not None and len(found.embeddings[0].values or []) == 4
    body = json.dumps({"content": {"parts": [{"text": "one"}]}}).encode()
    asked = urllib.request.Request(f"{served.url}/v1beta/models/tiny:embedContent", body)
    with urllib.request.urlopen(asked) as response:
        assert json.load(response)["embedding"]["values"] == pytest.approx(first)
    with pytest.raises(errors.ClientError, match="taskType"):
        client.models.embed_content(
            model="tiny", contents="one", config=types.EmbedContentConfig(task_type="RETRIEVAL_QUERY")
        )


def test_models(client: genai.Client) -> None:
    assert [model.name for model in client.models.list(config={"page_size": 1})] == ["models/tiny", "models/tiny-alias"]
    found = client.models.get(model="tiny-alias")
    assert found.name == "models/tiny-alias" and "embedContent" in (found.supported_actions or [])
    with pytest.raises(errors.ClientError):
        client.models.get(model="other")


def test_the_other_version(served: Live) -> None:
    with connected(served, version="v1") as client:
        assert client.models.generate_content(model="tiny", contents="hello", config=SHORT).candidates


# Errors --------------------------------------------------------------------------------------------------------------
def test_bad_requests(client: genai.Client) -> None:
    def refused(contents: Any = "hello", model: str = "tiny", **fields: Any) -> errors.ClientError:
        with pytest.raises(errors.ClientError) as caught:
            client.models.generate_content(model=model, contents=contents, config=fields)  # type: ignore[arg-type]
        return caught.value

    error = refused(safety_settings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}])
    assert (error.code, error.status) == (400, "INVALID_ARGUMENT") and "BLOCK_NONE" in (error.message or "")
    [detail] = error.details["error"]["details"]
    assert detail["fieldViolations"][0]["field"] == "safetySettings[0].threshold"
    assert "googleSearch" in (refused(tools=[{"google_search": {}}]).message or "")
    assert "thinkingBudget" in (refused(thinking_config={"thinking_budget": 512}).message or "")
    assert str(LIMITS.context) in (refused("x" * 5000).message or "")
    image = types.Part.from_bytes(data=PNG, mime_type="image/png")
    assert "image" in (refused(["what is this?", image]).message or "")
    error = refused(model="gemini-9")
    assert (error.code, error.status) == (404, "NOT_FOUND")


class Doorkeeper(Open):
    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        key = connection.headers.get("x-goog-api-key", "")
        return Principal(key) if key != "wrong" else Problem("unauthorized", "no such key")

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        kinds: dict[str, Any] = {"poor": "rate_limited", "other": "forbidden", "late": "overloaded"}
        return Problem(kinds[principal.key], "no", retry_after=7.0) if principal.key in kinds else None


def test_keys_and_limits() -> None:
    def guarded(config: Config) -> Server:
        server = server_of(fake_llm(), config=config, names=("tiny",))
        server.gate = Doorkeeper()
        return server

    expected: dict[str, tuple[type[errors.APIError], int, str]] = {
        "wrong": (errors.ClientError, 401, "UNAUTHENTICATED"),
        "other": (errors.ClientError, 403, "PERMISSION_DENIED"),
        "poor": (errors.ClientError, 429, "RESOURCE_EXHAUSTED"),
        "late": (errors.ServerError, 503, "UNAVAILABLE"),
    }
    with live(make=guarded) as served:
        for key, (kind, code, status) in expected.items():
            with connected(served, key) as client, pytest.raises(kind) as caught:
                client.models.generate_content(model="tiny", contents="hello", config=SHORT)
            assert (caught.value.code, caught.value.status) == (code, status)
        with connected(served, "right") as client:
            assert client.models.generate_content(model="tiny", contents="hello", config=SHORT).candidates


def test_failures_in_the_middle_of_a_stream() -> None:
    broken = FakeExecutor(
        LIMITS, dim=CONFIG.dim, fail=lambda number, batch: RuntimeError("secret /path") if number > 4 else None
    )
    with live(fake_llm(broken), names=("tiny",)) as served, connected(served) as client:
        long = types.GenerateContentConfig(max_output_tokens=200)
        with pytest.raises(errors.ServerError, match="internal error") as caught:
            list(client.models.generate_content_stream(model="tiny", contents="hello", config=long))
        assert "secret" not in str(caught.value)


def test_asyncio(served: Live) -> None:
    async def run() -> None:
        with connected(served) as client:
            ask = client.aio.models.generate_content
            whole = await ask(model="tiny", contents="hello", config=SHORT)
            stream = await client.aio.models.generate_content_stream(model="tiny", contents="hello", config=SHORT)
            assert "".join([chunk.text or "" async for chunk in stream]) == whole.text
            many = await asyncio.gather(*[ask(model="tiny", contents="hello", config=SHORT) for _ in range(6)])
            assert {one.text for one in many} == {whole.text}
            await client.aio.aclose()

    asyncio.run(run())


# A real model --------------------------------------------------------------------------------------------------------
def test_the_default_model(smollm2: Path) -> None:
    llm = herder.load(smollm2, context=1024)
    greedy = types.GenerateContentConfig(temperature=0, max_output_tokens=16)
    question = "What is the capital of France? Answer with one word."
    with live(llm, names=("smollm2",)) as served, connected(served) as client:
        found = client.models.generate_content(model="smollm2", contents=question, config=greedy)
        assert found.text is not None and "Paris" in found.text
        chunks = client.models.generate_content_stream(model="smollm2", contents=question, config=greedy)
        assert "".join([chunk.text or "" for chunk in chunks]) == found.text
        form = config(temperature=0, response_mime_type="application/json", response_schema=Answer)
        assert isinstance(
            client.models.generate_content(model="smollm2", contents=question, config=form).parsed, Answer
        )
        near = client.models.embed_content(model="smollm2", contents=["a cat", "a kitten", "stock prices"]).embeddings
        assert near is not None
        cat, kitten, stocks = (one.values or [] for one in near)
        assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > sum(
            a * b for a, b in zip(cat, stocks, strict=True)
        )
