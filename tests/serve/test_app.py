"""The application through ASGI: routes, errors, bodies, headers, queues, usage; sockets are in test_live.py."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from herder.core.batch import Batch
from herder.runtime.fake import FakeExecutor
from herder.serve.app import build_app
from herder.serve.body import parse_object
from herder.serve.config import Config, Limits, Logging
from herder.serve.dialect import Problem
from herder.serve.gate import Open, Principal, Usage
from herder.serve.log import Log
from herder.serve.problems import Refusal
from herder.serve.server import Server
from tests.serve.models import CONFIG, LIMITS, fake_llm, server_of

URL = "http://localhost"
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
Client = httpx.AsyncClient


def run(
    test: Callable[[Client, Server], Coroutine[Any, Any, None]],
    config: Config | None = None,
    executor: FakeExecutor | None = None,
    gate: Open | None = None,
) -> None:
    async def main() -> None:
        server = server_of(fake_llm(executor), config=config)
        if gate is not None:
            server.gate = gate
        transport = httpx.ASGITransport(build_app(server), raise_app_exceptions=False)
        async with Client(transport=transport, base_url=URL, timeout=30) as client:
            await test(client, server)
        await server.close()

    asyncio.run(main())


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_a_stream_joins_to_the_answer() -> None:
    async def test(client: Client, server: Server) -> None:
        whole = await client.post(CHAT, json=BODY)
        assert whole.status_code == 200 and whole.headers["content-type"] == "application/json"
        streamed = await client.post(CHAT, json={**BODY, "stream": True})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.headers["cache-control"] == "no-cache"
        pieces = [event["choices"][0]["delta"].get("content") or "" for event in events(streamed) if event["choices"]]
        assert "".join(pieces) == whole.json()["choices"][0]["message"]["content"] != ""
        assert streamed.text.endswith("data: [DONE]\n\n")

    run(test)


def test_an_alias_is_the_model_and_another_name_is_none() -> None:
    async def test(client: Client, server: Server) -> None:
        answer = await client.post(CHAT, json={**BODY, "model": "tiny-alias"})
        assert answer.status_code == 200
        lost = await client.post(CHAT, json={**BODY, "model": "gpt-4o"})
        assert lost.status_code == 404
        assert lost.json()["error"]["code"] == "model_not_found"
        assert "gpt-4o" in lost.json()["error"]["message"]

    run(test)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[1]", "no object"),
        (b'{"model": NaN}', "NaN"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than 64"),
        (b"[" * 200_000, "nested more than|not JSON"),
        (b'{"model": 1' + b"0" * 10_000 + b"}", "not JSON"),
        (b'{"model": "' + b"x" * 20_000 + b'"}', "larger than 16 KiB"),
    ],
)
def test_bodies_within_bounds_only(body: bytes, words: str) -> None:
    async def test(client: Client, server: Server) -> None:
        answer = await client.post(CHAT, content=body)
        assert answer.status_code == (413 if "larger" in words or len(body) > 100_000 else 400)
        if len(body) < 100_000:
            assert any(word in answer.json()["error"]["message"] for word in words.split("|"))

    run(test, Config(limits=Limits(body=16384)))


def test_a_body_without_a_length_is_bounded_too() -> None:
    async def pieces() -> Any:
        for _ in range(10):
            yield b" " * 1000

    async def test(client: Client, server: Server) -> None:
        assert (await client.post(CHAT, content=pieces())).status_code == 413

    run(test, Config(limits=Limits(body=4096)))


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async def test(client: Client, server: Server) -> None:
        answer = await client.post(CHAT, content=slow())
        assert answer.status_code == 400 and "did not arrive" in answer.json()["error"]["message"]

    run(test, Config(limits=Limits(body_seconds=0.05)))


def test_depth_is_that_of_containers() -> None:
    assert parse_object(b'{"a": [[1]]}', 3) == {"a": [[1]]}
    with pytest.raises(Refusal, match="more than 2 deep"):
        parse_object(b'{"a": [[1]]}', 2)


def test_unknown_paths_and_methods_answer_in_the_dialect_of_their_prefix() -> None:
    async def test(client: Client, server: Server) -> None:
        lost = await client.get("/v1/nothing")
        assert lost.status_code == 404 and lost.json()["error"]["type"] == "invalid_request_error"
        wrong = await client.get(CHAT)
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        assert (await client.get("/elsewhere")).status_code == 404

    run(test)


def test_a_lenient_server_names_what_it_left_out() -> None:
    async def test(client: Client, server: Server) -> None:
        answer = await client.post(CHAT, json={**BODY, "bogus": 1, "other\r\nx": 2})
        assert answer.status_code == 200
        assert answer.headers["x-herder-ignored-fields"] == "bogus, 'other\\r\\nx'"

    run(test, Config(lenient=True))

    async def strict(client: Client, server: Server) -> None:
        answer = await client.post(CHAT, json={**BODY, "bogus": 1})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "bogus"

    run(strict)


def test_request_ids_and_headers_of_safety() -> None:
    async def test(client: Client, server: Server) -> None:
        answer = await client.get("/health/live", headers={"x-request-id": "abc-1"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        answer = await client.post(CHAT, json=BODY, headers={"x-request-id": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
        answer = await client.post(CHAT, json=BODY, headers={"x-request-id": "a b"})
        assert answer.headers["x-request-id"] not in ("", "a b")

    run(test)


def test_a_deadline_comes_by_header() -> None:
    async def test(client: Client, server: Server) -> None:
        body = {**BODY, "max_tokens": 900}
        answer = await client.post(CHAT, json=body, headers={"x-herder-deadline": "1"})
        assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] < 200
        wrong = await client.post(CHAT, json=body, headers={"x-herder-deadline": "soon"})
        assert wrong.status_code == 400 and "x-herder-deadline" in wrong.text

    run(test, executor=Slow(LIMITS, dim=CONFIG.dim))


class Slow(FakeExecutor):
    """A step takes 10 ms."""

    def result(self, ticket: Any) -> Any:
        time.sleep(0.01)
        return super().result(ticket)


# How each vendor's clients find the message of an error.
SHAPES: dict[str, Callable[[Any], Any]] = {
    CHAT: lambda body: body["error"]["message"] if body["error"]["type"] == "invalid_request_error" else None,
    "/v1/messages": lambda body: body["error"]["message"] if body["type"] == "error" else None,
    "/v1beta/models/tiny:generateContent": lambda body: body["error"]["message"] if body["error"]["status"] else None,
    "/api/chat": lambda body: body["error"],
    "/nowhere": lambda body: body["error"]["message"],
}


def test_a_request_has_one_host() -> None:
    async def test(client: Client, server: Server) -> None:
        for hosts in ([], ["localhost", "localhost"], ["localhost", "evil.example"], ["evil.example", "localhost"]):
            request = client.build_request("GET", "/health/live")
            others = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
            request.headers = httpx.Headers([*others, *((b"host", host.encode()) for host in hosts)])
            answer = await client.send(request)
            assert answer.status_code == 400 and f"{len(hosts)} Host headers" in answer.json()["error"]["message"]

    run(test)


def test_pages_of_other_sites_and_rebound_names_are_refused() -> None:
    async def test(client: Client, server: Server) -> None:
        foreign = await client.post(CHAT, json=BODY, headers={"origin": "https://evil.example"})
        assert foreign.status_code == 403 and "cors" in foreign.text
        own = await client.post(CHAT, json=BODY, headers={"origin": URL})
        assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
        rebound = await client.post("http://evil.example" + CHAT, json=BODY)
        assert rebound.status_code == 403 and "host name" in rebound.text
        broken = await client.get("/health/live", headers={"host": "[::1"})
        assert broken.status_code == 403
        for path, shape in SHAPES.items():
            refused = await client.post("http://evil.example" + path, json=BODY)
            assert (
                refused.status_code == 403
                and shape(refused.json()) == "this host name is not the server's: add it to `hosts` if it should be"
            )
            assert refused.headers["x-request-id"]
        for name in ("http://127.0.0.1:99", "http://[::1]:99", "http://localhost:8080"):
            assert (await client.get(name + "/health/live")).status_code == 200

    run(test)


def test_allowed_origins_may_call() -> None:
    async def test(client: Client, server: Server) -> None:
        origin = {"origin": "https://app.example"}
        ask = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = await client.options(CHAT, headers=ask)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        answer = await client.post(CHAT, json=BODY, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert (await client.post(CHAT, json=BODY, headers={"origin": "https://b.example"})).status_code == 403

    run(test, Config(cors=("https://app.example",)))


def test_a_full_queue_says_when_to_come_again() -> None:
    async def test(client: Client, server: Server) -> None:
        body = {**BODY, "max_tokens": 200}
        many = [asyncio.create_task(client.post(CHAT, json=body)) for _ in range(LIMITS.batch_chunks + 6)]
        answers = await asyncio.gather(*many)
        codes = [answer.status_code for answer in answers]
        assert codes.count(429) == 4 and codes.count(200) == LIMITS.batch_chunks + 2
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert 1 <= float(refused.headers["retry-after"]) <= 60
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        assert 'herder_requests_refused_total{model_name="tiny"} 4.0' in (await client.get("/metrics")).text

    run(test, Config(limits=Limits(queue=2)))


def test_a_failing_engine_costs_its_request_only() -> None:
    def fail(number: int, batch: Batch) -> Exception | None:
        return RuntimeError("a secret of the machine") if number == 0 else None

    async def test(client: Client, server: Server) -> None:
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 500
        assert "secret" not in answer.text and answer.headers["x-request-id"] in answer.text
        assert (await client.post(CHAT, json=BODY)).status_code == 200

    run(test, executor=FakeExecutor(LIMITS, dim=CONFIG.dim, fail=fail))


def test_an_error_within_a_stream_is_part_of_it() -> None:
    def fail(number: int, batch: Batch) -> Exception | None:
        return RuntimeError("broken") if number == 3 else None

    async def test(client: Client, server: Server) -> None:
        answer = await client.post(CHAT, json={**BODY, "stream": True})
        assert answer.status_code == 200
        assert events(answer)[-1]["error"]["type"]

    run(test, executor=Slow(LIMITS, dim=CONFIG.dim, fail=fail))


class Counting(Open):
    """Lets `good` in, refuses the model `other`, and keeps what is recorded."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, Usage]] = []

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        if connection.headers.get("authorization") != "Bearer good":
            return Problem("unauthorized", "no such key")
        return Principal("good")

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        return Problem("forbidden", "not this one") if model == "other" else None

    async def record(self, principal: Principal, usage: Usage) -> None:
        self.recorded.append((principal.key, usage))


def test_the_gate_is_asked_and_told() -> None:
    gate = Counting()
    good = {"authorization": "Bearer good"}

    async def test(client: Client, server: Server) -> None:
        from herder.serve.config import ModelSpec

        server.models.add(ModelSpec("other"))
        assert (await client.post(CHAT, content=b"{")).status_code == 401  # before the body is looked at
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.post(CHAT, json={**BODY, "model": "other"}, headers=good)).status_code == 403
        assert gate.recorded == []
        await client.post(CHAT, json=BODY, headers=good)
        await client.post(CHAT, json={**BODY, "stream": True, "max_tokens": 5}, headers=good)
        await client.post(CHAT, json={**BODY, "temperature": 99999}, headers=good)
        page = (await client.get("/metrics", headers=good)).text
        assert 'vllm:generation_tokens_total{engine="0",key="good",model_name="tiny"} 13.0' in page

    run(test, gate=gate)
    assert [(key, usage.model, usage.status, usage.completion_tokens) for key, usage in gate.recorded[:2]] == [
        ("good", "tiny", 200, 8),
        ("good", "tiny", 200, 5),
    ]
    assert {usage.path for _, usage in gate.recorded} == {CHAT}


def test_metrics_have_vllms_names() -> None:
    async def test(client: Client, server: Server) -> None:
        await client.post(CHAT, json=BODY)
        page = (await client.get("/metrics")).text
        labels = 'engine="0",key="",model_name="tiny"'
        for line in (
            f"vllm:generation_tokens_total{{{labels}}} 8.0",
            f"vllm:time_to_first_token_seconds_count{{{labels}}} 1.0",
            f"vllm:e2e_request_latency_seconds_count{{{labels}}} 1.0",
            'vllm:request_success_total{engine="0",finished_reason="length",key="",model_name="tiny"} 1.0',
            'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0',
            'herder_model_loaded{engine="0",model_name="tiny"} 1.0',
            f'herder_http_requests_total{{key="",method="POST",path="{CHAT}",status="200"}} 1.0',
        ):
            assert line in page, line

    run(test)


def test_a_draining_server_takes_nothing_new() -> None:
    async def test(client: Client, server: Server) -> None:
        server.draining = True
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200

    run(test)


@pytest.mark.parametrize("prompts", [False, True])
def test_the_log_has_prompts_only_when_asked(prompts: bool) -> None:
    out = io.StringIO()

    async def test(client: Client, server: Server) -> None:
        server.log = Log(out=out)
        await client.post(CHAT, json=BODY, headers={"x-request-id": "one"})
        await client.post(CHAT, content=b"{", headers={"x-request-id": "two"})

    run(test, Config(logging=Logging(prompts=prompts)))
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["id"], first["status"], first["path"], first["model"]) == ("one", 200, CHAT, "tiny")
    assert first["completion_tokens"] == 8 and first["seconds"] > 0
    assert first.get("prompt") == ("user: hello" if prompts else None)
    assert (second["id"], second["status"]) == ("two", 400) and "model" not in second
