"""OpenAI's own client against a live server: what programs do, and the exceptions they catch."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from time import sleep

import openai
import pytest
from starlette.requests import HTTPConnection

from herder.runtime.fake import FakeExecutor
from herder.serve.config import Config
from herder.serve.config import Limits as Bounds
from herder.serve.dialect import Problem
from herder.serve.gate import Open, Principal
from herder.serve.server import Server
from tests.serve.dialects.calling import calling_llm
from tests.serve.live import Live, live
from tests.serve.models import CONFIG, LIMITS, fake_llm, server_of

USER = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def connected(served: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live(calling_llm(), names=("tiny",)) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Live) -> Iterator[openai.OpenAI]:
    with connected(served) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=USER, max_tokens=8, seed=1, metadata={"a": "b"})
    assert found.choices[0].message.role == "assistant" and found.choices[0].finish_reason in ("stop", "length")
    assert found.usage is not None and 0 < found.usage.completion_tokens <= 8
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model == "tiny" and found.id.startswith("chatcmpl-") and found.metadata == {"a": "b"}


def test_streams_say_what_answers_say(client: openai.OpenAI) -> None:
    said = {"model": "tiny-alias", "messages": USER, "max_tokens": 24, "temperature": 1.0, "seed": 5, "n": 3}
    whole = client.chat.completions.create(**said)
    texts = ["", "", ""]
    usage = None
    for chunk in client.chat.completions.create(**said, stream=True, stream_options={"include_usage": True}):
        assert chunk.model == "tiny-alias"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert texts == [choice.message.content for choice in whole.choices] and len(set(texts)) > 1
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=USER, max_tokens=6, logprobs=True, top_logprobs=4)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and found.usage is not None
    for entry in logprobs.content:
        assert entry.logprob <= 0 and entry.bytes is not None and len(entry.top_logprobs) == 4
        assert entry.top_logprobs[0].logprob == max(one.logprob for one in entry.top_logprobs)
    joined = b"".join([bytes(entry.bytes or []) for entry in logprobs.content])
    assert joined.decode("utf-8", "replace") == found.choices[0].message.content


def test_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    found = client.chat.completions.create(model="tiny", messages=USER, response_format=form, max_tokens=200)
    assert json.loads(found.choices[0].message.content or "")["a"] in (1, 2)
    extra = {"structured_outputs": {"choice": ["yes", "no"]}}
    found = client.chat.completions.create(model="tiny", messages=USER, extra_body=extra)
    assert found.choices[0].message.content in ("yes", "no")


def test_tools(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        found = client.chat.completions.create(
            model="tiny", messages=USER, tools=[WEATHER], tool_choice=choice, max_tokens=400, parallel_tool_calls=False
        )
        assert found.choices[0].finish_reason == "tool_calls", found.choices[0]
        calls = found.choices[0].message.tool_calls
        assert calls is not None and calls[0].function.name == "weather"
        assert list(json.loads(calls[0].function.arguments)) == ["city"]
    arguments = ""
    for chunk in client.chat.completions.create(
        model="tiny", messages=USER, tools=[WEATHER], tool_choice=named, max_tokens=400, stream=True,
        parallel_tool_calls=False,
    ):  # fmt: skip
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments += (call.function.arguments or "") if call.function else ""
    assert list(json.loads(arguments)) == ["city"]


def test_completions(client: openai.OpenAI) -> None:
    said = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    found = client.completions.create(prompt=["ab", [65, 66, 67]], **said)
    assert [choice.index for choice in found.choices] == [0, 1]
    echoed = client.completions.create(prompt="ab", echo=True, logprobs=2, **said)
    assert echoed.choices[0].text == "ab" + found.choices[0].text
    logprobs = echoed.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.text_offset is not None
    assert logprobs.token_logprobs[0] is None and None not in logprobs.token_logprobs[1:]
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    chunks = client.completions.create(prompt="ab", echo=True, stream=True, **said)
    assert "".join([chunk.choices[0].text for chunk in chunks]) == echoed.choices[0].text
    scored = client.completions.create(model="tiny", prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert scored.choices[0].text == "ab" and scored.choices[0].logprobs is not None


def test_embeddings(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="tiny", input=["one", "two"])  # base64, unpacked by the client
    floats = client.embeddings.create(model="tiny", input=["one", "two"], encoding_format="float")
    for packed, plain in zip(found.data, floats.data, strict=True):
        assert packed.embedding == pytest.approx(plain.embedding)
    assert math.fsum(x * x for x in floats.data[0].embedding) == pytest.approx(1.0, abs=1e-5)
    short = client.embeddings.create(model="tiny", input=[[65, 66]], dimensions=4, encoding_format="float")
    assert len(short.data[0].embedding) == 4


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-alias"]
    assert client.models.retrieve("tiny-alias").owned_by == "herder"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")


def test_native(client: openai.OpenAI, served: Live) -> None:
    root = client.with_options(base_url=served.url)
    ids = root.post("/tokenize", cast_to=object, body={"model": "tiny", "prompt": "hello", "return_token_strs": True})
    assert isinstance(ids, dict) and ids["count"] == len(ids["tokens"]) == len(ids["token_strs"])
    assert ids["max_model_len"] == LIMITS.context
    body = {"model": "tiny", "tokens": ids["tokens"], "skip_special_tokens": True}
    assert root.post("/detokenize", cast_to=object, body=body) == {"prompt": "hello"}
    chat = root.post("/tokenize", cast_to=object, body={"model": "tiny", "messages": USER})
    assert isinstance(chat, dict) and chat["count"] > ids["count"]
    score = root.post("/v1/score", cast_to=object, body={"model": "tiny", "input": ["hello", [65, 66]]})
    assert isinstance(score, dict) and [one["index"] for one in score["data"]] == [0, 1]
    assert score["data"][0]["tokens"] == ids["tokens"] and score["data"][0]["logprobs"][0] is None


# Errors --------------------------------------------------------------------------------------------------------------
def test_bad_requests(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=USER, extra_body={"frobnicate": 1})
    assert caught.value.param == "frobnicate" and "frobnicate" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a", best_of=2)
    assert caught.value.param == "best_of"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=[2**30], max_tokens=1)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny", messages=USER, extra_body={"structured_outputs": {"regex": "("}}, stream=True
        )
    assert caught.value.status_code == 400


def test_too_long_a_prompt(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=str(LIMITS.context)) as caught:
        client.completions.create(model="tiny", prompt="x" * 5000)
    assert caught.value.code == "context_length_exceeded"
    cut = client.completions.create(model="tiny", prompt="x" * 5000, extra_body={"truncate_prompt_tokens": -1})
    assert cut.truncated_prompt_tokens > 0  # type: ignore[attr-defined]


def test_unknown_models_and_paths(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.files.list()


def test_a_full_server_says_when_to_come_back() -> None:
    limits = replace(LIMITS, batch_chunks=1)
    slow = FakeExecutor(limits, dim=CONFIG.dim, fail=lambda number, batch: sleep(0.02))
    with (
        live(fake_llm(slow), config=Config(limits=Bounds(queue=0)), names=("tiny",)) as served,
        connected(served) as client,
    ):
        endless = {"ignore_eos": True}
        stream = client.completions.create(model="tiny", prompt="a", max_tokens=400, stream=True, extra_body=endless)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="tiny", prompt="a")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        stream.close()


class Doorkeeper(Open):
    """Answers by the key that is shown."""

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        key = connection.headers.get("authorization", "").removeprefix("Bearer ")
        return Principal(key) if key != "wrong" else Problem("unauthorized", "no such key")

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        if principal.key == "poor":
            return Problem("rate_limited", "out of tokens", code="insufficient_quota", retry_after=7.0)
        return Problem("forbidden", "not this model", "model") if principal.key == "other" else None


def test_keys() -> None:
    def guarded(config: Config) -> Server:
        server = server_of(fake_llm(), config=config, names=("tiny",))
        server.gate = Doorkeeper()
        return server

    with live(make=guarded) as served, connected(served) as client:
        for key, kind in (
            ("wrong", openai.AuthenticationError),
            ("poor", openai.RateLimitError),
            ("other", openai.PermissionDeniedError),
        ):
            with pytest.raises(kind) as caught:
                client.with_options(api_key=key).chat.completions.create(model="tiny", messages=USER)
            if key == "poor":
                assert caught.value.code == "insufficient_quota"
                assert caught.value.response.headers["retry-after"] == "7"
        assert client.chat.completions.create(model="tiny", messages=USER, max_tokens=1).choices


def test_failures_of_the_engine() -> None:
    broken = FakeExecutor(LIMITS, dim=CONFIG.dim, fail=lambda number, batch: RuntimeError("secret /path"))
    with live(fake_llm(broken), names=("tiny",)) as served, connected(served) as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="tiny", messages=USER, stream=stream)
            assert "secret" not in str(caught.value)


def test_failures_in_the_middle_of_a_stream() -> None:
    broken = FakeExecutor(
        LIMITS, dim=CONFIG.dim, fail=lambda number, batch: RuntimeError("secret /path") if number > 4 else None
    )
    with live(fake_llm(broken), names=("tiny",)) as served, connected(served) as client:
        extra = {"ignore_eos": True}
        with pytest.raises(openai.APIError, match="internal error"):
            list(client.completions.create(model="tiny", prompt="a", max_tokens=99, stream=True, extra_body=extra))


# asyncio -------------------------------------------------------------------------------------------------------------
def test_async_streams_and_cancellation(served: Live) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            said = {"model": "tiny", "prompt": "ab", "temperature": 0}
            whole = await client.completions.create(**said, max_tokens=20)
            pieces = [
                c.choices[0].text async for c in await client.completions.create(**said, max_tokens=20, stream=True)
            ]
            assert "".join(pieces) == whole.choices[0].text
            stream = await client.completions.create(
                **said, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
            )
            async for _ in stream:
                break
            await stream.close()
            many = [client.completions.create(**said, max_tokens=20) for _ in range(8)]
            assert {one.choices[0].text for one in await asyncio.gather(*many)} == {whole.choices[0].text}

    asyncio.run(run())
