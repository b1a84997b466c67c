"""OpenAI's own client against a live server: responses that are stored, continued, streamed, parsed and deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from herder.chat.load import load_chat_format
from herder.core.batch import Batch
from herder.runtime.fake import FakeExecutor
from herder.serve.config import Config, Limits
from herder.serve.gate import Open, Principal
from herder.serve.server import Server
from tests.serve.live import Live, live
from tests.serve.models import CONFIG, LIMITS, fake_llm, server_of

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
WORDS = {"structured_outputs": {"choice": ["yes", "no", "perhaps so"]}}  # an answer that ends by itself


class Named(Open):
    """The key is the name of who asks."""

    async def authorize(self, connection: HTTPConnection) -> Principal:
        return Principal(key=connection.headers.get("authorization", "").removeprefix("Bearer "))


def make(config: Config) -> Server:
    server = server_of(fake_llm(), config=config, names=("tiny",))
    server.gate = Named()
    return server


def client_of(url: str, key: str = "alice") -> Any:  # its types are unions of everything that can be asked
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("responses") / "responses.db"
    with live(config=Config(responses=str(path)), make=make) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Live) -> Iterator[Any]:
    with client_of(served.url) as made:
        yield made


def test_a_response_is_stored_and_read_back(client: Any) -> None:
    found = client.responses.create(
        model="tiny", input="Hello", instructions="Be brief.", max_output_tokens=8, metadata={"a": "b"}
    )
    assert found.status in ("completed", "incomplete") and found.usage is not None
    assert found.usage.output_tokens <= 8 and found.output_text == found.output[0].content[0].text
    assert client.responses.retrieve(found.id).to_dict() == found.to_dict()
    [item] = client.responses.input_items.list(found.id).data
    assert item.type == "message" and item.content[0].text == "Hello"
    client.responses.delete(found.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            gone(found.id)


def test_what_is_not_to_be_stored_is_not(client: Any) -> None:
    found = client.responses.create(model="tiny", input="Hello", max_output_tokens=4, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(found.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="More", previous_response_id=found.id)
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"


def test_a_conversation_goes_on(client: Any) -> None:
    """Continued by its id, it is the conversation that a client would send as a whole; instructions are not."""
    said: dict[str, Any] = {"model": "tiny", "max_output_tokens": 12, "temperature": 0}
    first = client.responses.create(input="One", instructions="Be brief.", **said)
    second = client.responses.create(input="Two", previous_response_id=first.id, **said)
    third = client.responses.create(input="Three", previous_response_id=second.id, **said)
    items: list[Any] = [{"role": "user", "content": "One"}, *first.output, {"role": "user", "content": "Two"}]
    items += [*second.output, {"role": "user", "content": "Three"}]
    whole = client.responses.create(input=items, store=False, **said)
    assert whole.output_text == third.output_text and whole.usage is not None and third.usage is not None
    assert whole.usage.input_tokens == third.usage.input_tokens and third.previous_response_id == second.id
    assert whole.usage.input_tokens_details.cached_tokens > 0
    by_id: list[Any] = [{"role": "user", "content": "One"}, {"type": "item_reference", "id": first.output[0].id}]
    by_id += [{"role": "user", "content": "Two"}]
    assert client.responses.create(input=by_id, **said).output_text == second.output_text
    with pytest.raises(openai.BadRequestError, match="there is no stored item 'msg_none'"):
        client.responses.create(input=[{"type": "item_reference", "id": "msg_none"}], **said)


def test_thoughts_given_back_are_shown_where_the_format_has_a_place(client: Any) -> None:
    items: list[Any] = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
    thought = {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hmm, let me think."}],
    }
    after = {"role": "user", "content": "Three"}
    count = client.responses.input_tokens.count

    def tokens(*given: Any) -> int:
        return int(count(model="tiny", input=list(given)).input_tokens)

    assert tokens(items[0], thought, items[1], after) == tokens(*items, after), "this format has none"
    template = "{% for m in messages %}{{ m.reasoning_content or '' }}{{ m.content }}{% endfor %}"
    llm = fake_llm()
    llm.chat_format = load_chat_format(llm.tokenizer, {"default": template})
    with live(llm, names=("tiny",)) as server, client_of(server.url) as other:
        count = other.responses.input_tokens.count
        assert tokens(items[0], thought, items[1], after) > tokens(*items, after)


def test_input_tokens_are_counted(client: Any) -> None:
    said: dict[str, Any] = {"model": "tiny", "input": "How is it?", "instructions": "Be brief.", "tools": [WEATHER]}
    first = client.responses.create(**said, max_output_tokens=4, tool_choice="none")
    assert client.responses.input_tokens.count(**said, tool_choice="none").input_tokens == first.usage.input_tokens
    more = {"model": "tiny", "input": "And now?", "previous_response_id": first.id}
    second = client.responses.create(**more, max_output_tokens=4)
    assert client.responses.input_tokens.count(**more).input_tokens == second.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="max_output_tokens is not a field of this API"):
        client.responses.input_tokens.count(**more, extra_body={"max_output_tokens": 4})


def test_a_stream_says_what_the_response_says(client: Any) -> None:
    said: dict[str, Any] = {"model": "tiny", "input": "Hello", "extra_body": {**WORDS, "seed": 5}}
    whole = client.responses.create(**said)
    assert whole.status == "completed" and whole.output_text in WORDS["structured_outputs"]["choice"]
    with client.responses.stream(**said) as stream:
        kinds, text = [], ""
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        final = stream.get_final_response()
    assert text == whole.output_text == final.output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert client.responses.retrieve(final.id).output_text == text


def test_tools_round_trip(client: Any) -> None:
    said: dict[str, Any] = {"model": "tiny", "tools": [WEATHER], "parallel_tool_calls": False}
    first = client.responses.create(input="Rain?", tool_choice="required", max_output_tokens=400, **said)
    [call] = [item for item in first.output if item.type == "function_call"]
    assert call.name == "weather" and json.loads(call.arguments)["city"] in ("Ulm", "Oslo")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    more: dict[str, Any] = {"max_output_tokens": 6, "temperature": 0, "tool_choice": "none"}
    stored = client.responses.create(input=[result], previous_response_id=first.id, **said, **more)
    sent: list[Any] = [{"role": "user", "content": "Rain?"}, *first.output, result]
    assert client.responses.create(input=sent, store=False, **said, **more).output_text == stored.output_text
    [item] = client.responses.input_items.list(stored.id).data
    assert item.type == "function_call_output" and item.output == "rain"
    with pytest.raises(openai.BadRequestError, match="has no function_call_output"):
        client.responses.create(input="Well?", previous_response_id=first.id, **said)
    arguments, done = "", ""
    named = {"type": "function", "name": "weather"}
    for event in client.responses.create(
        input="Rain?",
        tool_choice=named,
        stream=True,
        max_output_tokens=400,
        **said,
    ):
        if event.type == "response.function_call_arguments.delta":
            arguments += event.delta
        elif event.type == "response.function_call_arguments.done":
            done = event.arguments
    assert arguments == done and json.loads(done)["city"] in ("Ulm", "Oslo")


def test_structured_output(client: Any) -> None:
    class Place(BaseModel):
        city: Literal["Ulm", "Oslo"]

    found = client.responses.parse(model="tiny", input="Where?", text_format=Place, max_output_tokens=400)
    assert isinstance(found.output_parsed, Place)


def test_logprobs(client: Any) -> None:
    found = client.responses.create(
        model="tiny", input="Hello", max_output_tokens=6, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    logprobs = found.output[0].content[0].logprobs
    joined = b"".join([bytes(one.bytes) for one in logprobs])
    assert joined.decode("utf-8", "replace") == found.output_text and len(logprobs[0].top_logprobs) == 2


def test_input_items_come_in_pages(client: Any) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(5)]
    found = client.responses.create(model="tiny", input=items, max_output_tokens=1)
    pages = client.responses.input_items.list(found.id, limit=2, order="asc", include=["message.input_image.image_url"])
    assert len(pages.data) == 2
    assert [item.content[0].text for item in pages] == list("01234")
    backwards = client.responses.input_items.list(found.id)
    assert [item.content[0].text for item in backwards] == list("43210")
    for bad in ({"limit": 0}, {"limit": 101}, {"after": "none"}, {"order": "up"}, {"include": ["x"]}):
        with pytest.raises(openai.BadRequestError):
            client.responses.input_items.list(found.id, **bad)


def test_refusals(client: Any) -> None:
    kept = client.responses.create(model="tiny", input="Hello", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="only a response that runs in the background"):
        client.responses.cancel(kept.id)
    with pytest.raises(openai.BadRequestError, match="stream is not supported"):
        client.responses.retrieve(kept.id, stream=True)
    with pytest.raises(openai.BadRequestError, match="background is not supported") as caught:
        client.responses.create(model="tiny", input="Hello", background=True)
    assert caught.value.param == "background" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="none", input="Hello")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model="tiny", input="Hello " * 1000)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("id", ["%00", "x" * 9000, "%F0%9F%90%91", "'%20OR%201=1%20--", "resp_%2e%2e", "%ff", "."])
def test_odd_ids_are_not_found(served: Live, id: str) -> None:
    with httpx.Client(base_url=f"{served.url}/v1/responses", headers={"authorization": "Bearer alice"}) as client:
        for method, path in (("GET", id), ("DELETE", id), ("POST", f"{id}/cancel"), ("GET", f"{id}/input_items")):
            found = client.request(method, f"/{path}")
            assert found.status_code in (404, 405) and len(found.content) < 600, (method, found.text)
            assert found.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "query", ["limit=%00", "limit=%D9%A1", "limit=1e1", "after=%ff", "order=", "include[]=x", "frob=1"]
)
def test_odd_queries_are_refused(served: Live, client: Any, query: str) -> None:
    kept = client.responses.create(model="tiny", input="Hello", max_output_tokens=1)
    url = f"{served.url}/v1/responses/{kept.id}/input_items?{query}"
    found = httpx.get(url, headers={"authorization": "Bearer alice"})
    assert found.status_code == 400 and found.json()["error"]["param"], found.text


def test_a_long_conversation_is_cut_on_request(client: Any) -> None:
    items = [{"role": "user", "content": f"{number} " * 90} for number in range(10)]
    said: Any = {"model": "tiny", "input": items, "max_output_tokens": 4}
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**said)
    found = client.responses.with_raw_response.create(**said, truncation="auto")
    assert int(found.headers["x-herder-truncated-tokens"]) == found.parse().truncated_prompt_tokens > 0


def test_another_key_reads_nothing(served: Live, client: Any) -> None:
    found = client.responses.create(model="tiny", input="Hello", max_output_tokens=2)
    with client_of(served.url, "bob") as bob:
        for reading in (bob.responses.retrieve, bob.responses.delete, bob.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                reading(found.id)
        with pytest.raises(openai.NotFoundError):
            bob.responses.input_items.list(found.id)
        with pytest.raises(openai.BadRequestError, match="there is no stored response"):
            bob.responses.create(model="tiny", input="What did she say?", previous_response_id=found.id)
        with pytest.raises(openai.BadRequestError, match="there is no stored item"):
            bob.responses.create(model="tiny", input=[{"type": "item_reference", "id": found.output[0].id}])
    assert client.responses.retrieve(found.id).id == found.id


def test_what_nobody_waited_for_is_not_stored(tmp_path: Path) -> None:
    on = threading.Event()

    def hold(number: int, batch: Batch) -> None:
        if number > 4:  # after the first tokens
            assert on.wait(30)

    llm = fake_llm(FakeExecutor(LIMITS, dim=CONFIG.dim, fail=hold))
    config = Config(responses=str(tmp_path / "responses.db"))
    with live(llm, config=config, names=("tiny",)) as server, client_of(server.url) as client:
        stream = client.responses.create(
            model="tiny", input="Go on", max_output_tokens=50, stream=True, extra_body={"ignore_eos": True}
        )
        begun = next(iter(stream)).response.id
        stream.close()
        model = server.server.models.find("tiny")
        while server.call(lambda: model.users):  # until the server has noticed
            sleep(0.01)
        on.set()
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(begun)


def test_what_cannot_be_stored_is_not_said_to_be_done(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    path.write_text("no database " * 100)
    path.chmod(0o600)
    said: dict[str, Any] = {"model": "tiny", "input": "Hello", "max_output_tokens": 20}
    with live(config=Config(responses=str(path)), make=make) as server, client_of(server.url) as client:
        with pytest.raises(openai.InternalServerError, match="is no file of stored responses") as caught:
            client.responses.create(**said)
        assert caught.value.status_code == 503
        events = list(client.responses.create(**said, stream=True))
        assert events[-1].type == "response.failed"
        assert not any(event.type in ("response.completed", "response.incomplete") for event in events)
        assert client.responses.create(**said, store=False).output_text


def test_where_responses_are_kept_when_nobody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERDER_HOME", str(tmp_path))
    limits = Limits(responses=2)
    with live(config=Config(limits=limits), make=make) as server, client_of(server.url) as client:
        ids = [client.responses.create(model="tiny", input=word, max_output_tokens=1).id for word in ("a", "b", "c")]
        assert [one.id for one in map(client.responses.retrieve, ids[1:])] == ids[1:]
        with pytest.raises(openai.NotFoundError):  # the configured bound
            client.responses.retrieve(ids[0])
    path = tmp_path / "state" / "responses.sqlite3"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # closed with the server: no log is left


CHILD = """
import sys, time
from herder.serve.config import Config
from tests.serve.dialects.test_openai_responses_client import make
from tests.serve.live import live

with live(config=Config(responses=sys.argv[1]), make=make) as server:
    print(server.url, flush=True)
    time.sleep(60)
"""


@dataclass
class Child:
    process: subprocess.Popen[str]
    url: str

    @classmethod
    def start(cls, path: Path) -> Child:
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return cls(process, process.stdout.readline().strip())

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait(10) == -signal.SIGKILL


def test_a_server_that_is_killed_has_every_response_that_it_gave(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    child = Child.start(path)
    seen: list[Response] = []
    enough = threading.Event()

    def ask() -> None:
        previous: str | None = None
        with client_of(child.url) as client:
            while True:
                said: Any = {"model": "tiny", "input": "More", "previous_response_id": previous}
                try:
                    for event in client.responses.create(**said, max_output_tokens=3, stream=True):
                        if event.type in ("response.incomplete", "response.completed"):
                            seen.append(event.response)
                            previous = event.response.id if len(seen) % 4 else None
                except openai.APIConnectionError:  # killed, perhaps in the middle of a stream
                    return
                if len(seen) >= 12:
                    enough.set()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    child.kill()
    for thread in threads:
        thread.join(30)
    again = Child.start(path)
    try:
        with client_of(again.url) as client:
            for response in seen:
                assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
            last = next(response for response in reversed(seen) if response.previous_response_id is not None)
            client.responses.create(model="tiny", input="And?", previous_response_id=last.id, max_output_tokens=2)
    finally:
        again.kill()
