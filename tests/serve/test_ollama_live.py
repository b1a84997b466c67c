"""Ollama's own client against a live server: text, tools, vectors, loading and unloading, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from herder.core.request import Sampling
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor, FakeModel
from herder.serve.config import Config, ModelSpec
from herder.serve.gate import Open, Principal
from herder.serve.lifecycle import make_server
from herder.serve.log import Log
from herder.serve.models import Models, Need
from herder.serve.server import Server
from tests.serve.live import Live, live
from tests.serve.models import CONFIG, LIMITS, fake_llm, tiny

USER = {"role": "user", "content": "hello"}
FEW = {"num_predict": 12}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


class Scripted(FakeModel):
    """Says CALL where a tool could be called, whatever it is asked."""

    def sample(self, state: int, sampling: Sampling, seed: int, step: int, *rest: Any) -> int:
        tokenizer, chat_format = tiny()
        script = [*tokenizer.encode(CALL), next(iter(chat_format.stop_ids))]
        return script[step]


def caller() -> LLM:
    executor = FakeExecutor(LIMITS, dim=CONFIG.dim)
    executor.model = Scripted(LIMITS.vocab, CONFIG.dim)
    return fake_llm(executor)


def plain() -> LLM:
    llm = fake_llm()
    llm.chat_format = None
    return llm


MADE = {"tiny": fake_llm, "caller": caller, "base": plain, "tagged:latest": fake_llm}


def make(config: Config) -> Server:
    """A model is made anew whenever it is loaded."""
    specs = [ModelSpec(name, "/nonexistent", aliases=(f"{name}-alias",) if name == "tiny" else ()) for name in MADE]
    models = Models(specs, lambda spec, need: MADE[spec.name](), lambda spec, room: Need(1))
    return Server(config, models, log=Log(requests=False))


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live(make=make) as found:
        yield found


@pytest.fixture
def client(served: Live) -> Iterator[ollama.Client]:
    with ollama.Client(served.url) as found:
        yield found


def refused(call: Any) -> ollama.ResponseError:
    with pytest.raises(ollama.ResponseError) as caught:
        call()
    return caught.value


# Text ----------------------------------------------------------------------------------------------------------------
def test_chat_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat("tiny", [USER], options=FEW)
    pieces = list(client.chat("tiny", [USER], options=FEW, stream=True))
    assert whole.message.role == "assistant" and whole.message.content
    assert "".join([piece.message.content or "" for piece in pieces]) == whole.message.content
    assert [piece.done for piece in pieces[-2:]] == [False, True] and pieces[-1].done_reason == "length"
    for one in (whole, pieces[-1]):
        assert (one.model, one.done_reason, one.eval_count) == ("tiny", "length", 12)
        assert one.prompt_eval_count and one.total_duration and one.prompt_eval_duration and one.eval_duration
        assert one.total_duration >= one.prompt_eval_duration + one.eval_duration


def test_a_stream_is_what_a_body_without_stream_asks_for(served: Live) -> None:
    body = {"model": "tiny", "messages": [USER], "options": FEW}
    answer = httpx.post(f"{served.url}/api/chat", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert json.loads(answer.text.splitlines()[-1])["done"] is True


def test_generate_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.generate("tiny", "hello", system="be kind", options=FEW)
    pieces = list(client.generate("tiny", "hello", system="be kind", options=FEW, stream=True))
    assert whole.response and "".join([piece.response or "" for piece in pieces]) == whole.response
    raw = client.generate("tiny", "hello", raw=True, options={**FEW, "temperature": 0})
    assert raw.response and raw.prompt_eval_count and whole.prompt_eval_count
    assert raw.prompt_eval_count < whole.prompt_eval_count


def test_a_model_without_a_chat_format_continues_the_prompt(client: ollama.Client) -> None:
    options = {**FEW, "temperature": 0}
    assert client.generate("base", "hello", options=options).response == (
        client.generate("base", "hello", raw=True, options=options).response
    )
    assert "no chat format" in refused(lambda: client.chat("base", [USER])).error


def test_a_schema_holds(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    answer = client.chat("tiny", [USER], format=schema, options={"num_predict": 400})
    assert answer.done_reason == "stop" and 1 <= json.loads(answer.message.content or "")["age"] <= 99
    error = refused(lambda: client.chat("tiny", [USER], format={"type": "no such type"}))
    assert error.status_code == 400


def test_a_tool_is_called_with_an_object(client: ollama.Client) -> None:
    def weather(city: str) -> str:
        """The weather.

        Args:
          city: which
        """
        return city

    whole = client.chat("caller", [USER], tools=[weather])
    assert whole.message.tool_calls and whole.done_reason == "stop"
    [call] = whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Oslo"})
    pieces = list(client.chat("caller", [USER], tools=[weather], stream=True))
    assert [piece.message.tool_calls for piece in pieces if piece.message.tool_calls] == [[call]]
    result = ollama.Message(role="tool", content="cold", tool_name="weather")
    again = client.chat("tiny", [USER, whole.message, result], tools=[weather], options=FEW)
    assert again.message.content is not None


def test_log_probabilities(client: ollama.Client) -> None:
    answer = client.generate("tiny", "hello", options=FEW, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None and len(answer.logprobs) == 12
    assert all(one.logprob <= 0 and len(one.top_logprobs or ()) == 2 for one in answer.logprobs)


def test_an_asynchronous_client(served: Live) -> None:
    async def main() -> None:
        async with ollama.AsyncClient(served.url) as client:
            pieces = [piece async for piece in await client.chat("tiny", [USER], options=FEW, stream=True)]
            whole = await client.chat("tiny", [USER], options=FEW)
            assert "".join([piece.message.content or "" for piece in pieces]) == whole.message.content

    asyncio.run(main())


# Vectors -------------------------------------------------------------------------------------------------------------
def test_vectors(client: ollama.Client) -> None:
    found = client.embed("tiny", ["hello", "hello", "bye"])
    first, second, third = found.embeddings
    assert first == second != third and sum(x * x for x in first) == pytest.approx(1, abs=1e-5)
    assert found.prompt_eval_count and len(client.embed("tiny", "hello", dimensions=3).embeddings[0]) == 3
    old = client.embeddings("tiny", "hello").embedding
    length = sum(x * x for x in old) ** 0.5
    assert [x / length for x in old] == pytest.approx(first, abs=1e-5) and length != pytest.approx(1, abs=1e-3)
    assert client.embed("tiny", "").embeddings == [] and client.embeddings("tiny", "").embedding == []


def test_an_input_over_the_window(client: ollama.Client, served: Live) -> None:
    long = "word " * 2000
    error = refused(lambda: client.embed("tiny", ["short", long]))
    assert error.status_code == 400 and "input[1]" in error.error and "1024" in error.error
    body = {"model": "tiny", "input": long, "truncate": True}
    answer = httpx.post(f"{served.url}/api/embed", json=body)
    assert answer.json()["prompt_eval_count"] == 1024
    assert int(answer.headers["x-herder-truncated-tokens"]) > 1000
    chat = {"model": "tiny", "messages": [{**USER, "content": long}, {"role": "assistant", "content": "y"}, USER]}
    assert httpx.post(f"{served.url}/api/chat", json=chat).status_code == 400
    cut = httpx.post(f"{served.url}/api/chat", json={**chat, "truncate": True, "options": FEW})
    assert cut.status_code == 200 and int(cut.headers["x-herder-truncated-tokens"]) > 1000


# Models --------------------------------------------------------------------------------------------------------------
def test_loading_and_unloading(client: ollama.Client, served: Live) -> None:
    def loaded() -> dict[str | None, Any]:
        return {one.model: one for one in client.ps().models}

    client.generate("tiny", keep_alive=0)
    assert "tiny" not in loaded()
    assert client.generate("tiny", keep_alive="5m").done_reason == "load"
    tiny = loaded()["tiny"]
    assert tiny.context_length == 1024 and tiny.expires_at.year < 9999
    client.chat("tiny", [], keep_alive=-1)
    assert loaded()["tiny"].expires_at.year == 9999
    assert client.chat("tiny", [], keep_alive=0).done_reason == "unload"
    assert "tiny" not in loaded()
    assert client.generate("tiny", keep_alive=0).done_reason == "unload", "of one that is not loaded"
    client.chat("tiny", [USER], options=FEW)
    assert loaded()["tiny"].expires_at.year == 9999, "what was said of the last load is forgotten"


def test_a_model_that_is_kept_for_no_time(client: ollama.Client, served: Live) -> None:
    client.chat("tiny", [USER], options=FEW, keep_alive=0)
    for _ in range(500):
        if all(one.model != "tiny" for one in client.ps().models):
            break
    else:
        pytest.fail("the model stayed")


def test_names_with_and_without_a_tag(client: ollama.Client) -> None:
    for name in ("tiny:latest", "tiny-alias", "tagged", "tagged:latest"):
        assert client.chat(name, [USER], options=FEW).model == name
    assert {"tiny", "tiny-alias", "tagged:latest"} <= {one.model for one in client.list().models}


def test_what_is_shown_of_a_model_without_files(client: ollama.Client) -> None:
    assert "tools" in (client.show("caller").capabilities or ())
    assert client.show("base").capabilities == ["completion", "embedding"]


# Errors --------------------------------------------------------------------------------------------------------------
def test_errors_have_the_clients_own_type(client: ollama.Client) -> None:
    def status(call: Any, *words: str) -> int:
        error = refused(call)
        assert all(word in error.error for word in words), error.error
        return error.status_code

    assert status(lambda: client.chat("none", [USER]), "model 'none' not found") == 404
    assert status(lambda: client.show("none"), "not found") == 404
    assert status(lambda: client.chat("tiny", [USER], options={"mirostat": 1}), "options.mirostat") == 400
    assert status(lambda: client.chat("tiny", [USER], options={"num_ctx": 4096}), "4096", "1024") == 400
    assert status(lambda: client.chat("tiny", [USER], think=True), "does not support thinking") == 400
    assert status(lambda: client.generate("tiny", "x", suffix="y"), "infilling") == 400
    assert status(lambda: client.copy("a", "b"), "/api/copy", "aliases") == 400
    assert status(lambda: client.create("a", from_="b"), "herder convert") == 400
    assert status(lambda: client.push("a"), "/api/push") == 400
    assert status(lambda: client.pull("o/gguf"), "pull = true") == 403
    assert status(lambda: client.delete("tiny"), "pull = true") == 403
    assert client.chat("tiny", [USER], options={**FEW, "num_ctx": 1024}, think=False).done


def test_an_error_of_a_stream_is_a_status(client: ollama.Client, served: Live) -> None:
    assert refused(lambda: list(client.chat("none", [USER], stream=True))).status_code == 404
    assert httpx.get(f"{served.url}/api/nothing").json() == {"error": "there is no '/api/nothing' here"}
    assert httpx.get(f"{served.url}/api/version").json()["version"].count(".") == 2
    assert httpx.head(f"{served.url}/api/tags").status_code == 200


class Keyed(Open):
    """Lets a key use one model, and administer nothing."""

    async def authorize(self, connection: Any) -> Principal:
        return Principal("key", frozenset({"tiny"}), administers=False)


def test_a_key_that_may_use_one_model() -> None:
    def keyed(config: Config) -> Server:
        server = make(config)
        server.gate = Keyed()
        return server

    with live(make=keyed, config=Config(pull=True)) as served, ollama.Client(served.url) as client:
        assert client.chat("tiny", [USER], options=FEW).done
        assert refused(lambda: client.chat("base", [USER])).status_code == 403
        assert refused(lambda: client.generate("base", keep_alive=0)).status_code == 403
        assert {one.model for one in client.list().models} == {"tiny", "tiny-alias"}
        assert "base" not in refused(lambda: client.show("none")).error
        assert refused(lambda: client.pull("o/gguf")).status_code == 403
        assert refused(lambda: client.delete("tiny")).status_code == 403


# The default model ---------------------------------------------------------------------------------------------------
def test_a_real_model(smollm2: Path) -> None:
    config = Config(models=(ModelSpec("smollm2", str(smollm2), context=512),))
    with live(make=make_server, config=config) as served, ollama.Client(served.url) as client:
        shown = client.show("smollm2")
        assert shown.modelinfo and shown.modelinfo["general.architecture"] == "llama"
        assert shown.details and shown.details.parameter_size == "135M" and shown.template
        [listed] = client.list().models
        assert listed.size and listed.size > 90_000_000 and listed.digest and len(listed.digest) == 64
        question = [{"role": "user", "content": "What is the capital of France?"}]
        options = {"temperature": 0, "num_predict": 12}
        answer = client.chat("smollm2", question, options=options)
        body = {"model": "smollm2", "messages": question, "temperature": 0, "max_tokens": 12}
        other = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer.message.content == other["choices"][0]["message"]["content"] and answer.load_duration
        schema = {"type": "object", "properties": {"capital": {"enum": ["Paris", "Rome"]}}, "required": ["capital"]}
        schema["additionalProperties"] = False  # or a model this small goes on to other capitals
        said = client.chat("smollm2", question, format=schema, options={"temperature": 0, "num_predict": 60})
        assert json.loads(said.message.content or "")["capital"] in ("Paris", "Rome")
