"""The gate of a server with keys: what vendors' clients send, limits, quotas, usage, the audit log; over HTTP."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from herder.core.errors import StorageError
from herder.serve import keys, keys_store, usage
from herder.serve.config import Config, Logging
from herder.serve.dialect import Problem
from herder.serve.gate import Open, Principal, Usage
from herder.serve.key_gate import Holder, KeyGate, open_gate, presented
from herder.serve.server import Server
from tests.serve.live import live
from tests.serve.models import fake_llm, keyed_server, server_of

MINUTES = 1_000_000_020.0  # seconds since the epoch, a whole minute


def connection(*headers: tuple[str, str], query: str = "") -> HTTPConnection:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return HTTPConnection(
        {"type": "http", "headers": raw, "query_string": query.encode(), "client": ("10.0.0.7", 4), "path": "/"}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keys_store.connect(tmp_path / "keys", create=True).close()
    return tmp_path / "keys"


def new(path: Path, name: str = "alice", **limits: Any) -> keys.Made:
    made = keys.make(name, **limits)
    database = keys_store.connect(path)
    keys_store.add(database, made.key)
    database.close()
    return made


class Clock:
    def __init__(self) -> None:
        self.now = MINUTES

    def __call__(self) -> float:
        return self.now


async def let_in(gate: KeyGate, text: str) -> Principal:
    found = await gate.authorize(connection(("authorization", f"Bearer {text}")))
    assert isinstance(found, Holder)
    return found


def used(prompt: int = 0, completion: int = 0, status: int = 200) -> Usage:
    return Usage("id", "/v1/chat/completions", "tiny", status, prompt, 0, completion)


# What clients send ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ([("Authorization", "Bearer k")], "", "k"),
        ([("authorization", "bearer  k ")], "", "k"),
        ([("X-Api-Key", "k")], "", "k"),
        ([("x-goog-api-key", "k")], "", "k"),
        ([], "alt=sse&key=k", "k"),
        ([("authorization", "Basic abc"), ("x-api-key", "k")], "", "k"),
        ([("authorization", "Bearer "), ("x-goog-api-key", "k")], "key=other", "k"),
        ([("authorization", "Bearer k"), ("x-api-key", "other")], "", "k"),
        ([], "", ""),
        ([("authorization", "k")], "", ""),
    ],
)
def test_a_key_comes_as_any_vendors_client_sends_it(headers: list[tuple[str, str]], query: str, expected: str) -> None:
    assert presented(connection(*headers, query=query)) == expected


def test_who_has_a_key_is_let_in_and_known_by_its_name(path: Path) -> None:
    made = new(path, models=frozenset({"tiny"}), administers=True)

    async def main() -> None:
        gate = KeyGate(path)
        who = await let_in(gate, made.text)
        assert (who.key, who.models, who.administers, who.address) == ("alice", {"tiny"}, True, "10.0.0.7")
        for wrong in ((), (("x-api-key", "nonsense"),), (("x-api-key", made.text[:-1] + "é"),)):
            problem = await gate.authorize(connection(*wrong))
            assert isinstance(problem, Problem) and (problem.kind, problem.code) == ("unauthorized", "invalid_api_key")
        database = keys_store.connect(path)
        keys_store.revoke(database, "alice")  # by another process, while the server runs
        database.close()
        assert isinstance(await gate.authorize(connection(("x-api-key", made.text))), Problem)
        later = new(path, "bob")
        assert (await let_in(gate, later.text)).key == "bob"
        await gate.close()

    asyncio.run(main())


# Limits --------------------------------------------------------------------------------------------------------------
def test_models_that_are_not_allowed(path: Path) -> None:
    made = new(path, models=frozenset({"tiny", "small"}))

    async def main() -> None:
        gate = KeyGate(path)
        who = await let_in(gate, made.text)
        assert await gate.admit(who, "tiny") is None
        problem = await gate.admit(who, "large")
        assert problem is not None and (problem.kind, problem.field) == ("forbidden", "model")
        assert problem.message == "this API key may not use the model 'large': it may use small, tiny"
        await gate.close()

    asyncio.run(main())


def test_requests_and_tokens_a_minute(path: Path) -> None:
    requests, tokens = new(path, rpm=2), new(path, "bob", tpm=100)

    async def main() -> None:
        clock = Clock()
        gate = KeyGate(path, clock, clock)
        who = await let_in(gate, requests.text)
        assert await gate.admit(who, "tiny") is None
        clock.now += 20
        assert await gate.admit(who, "tiny") is None
        problem = await gate.admit(who, "tiny")
        assert problem is not None and (problem.kind, problem.retry_after) == ("rate_limited", 40.0)
        clock.now += 40
        assert await gate.admit(who, "tiny") is None

        who = await let_in(gate, tokens.text)
        assert await gate.admit(who, "tiny") is None
        await gate.record(who, used(90, 9))
        assert await gate.admit(who, "tiny") is None
        await gate.record(who, used(90, 61))
        problem = await gate.admit(who, "tiny")
        assert problem is not None and problem.code == "rate_limit_exceeded" and problem.retry_after is not None
        assert 60 < problem.retry_after <= 150
        clock.now += problem.retry_after
        assert await gate.admit(who, "tiny") is None
        await gate.close()

    asyncio.run(main())


def test_a_quota_outlives_the_server_and_ends_with_its_period(path: Path) -> None:
    made, ever = new(path, quota=100, period="day"), new(path, "bob", quota=10)

    async def main() -> None:
        clock = Clock()
        gate = KeyGate(path, clock)
        who = await let_in(gate, made.text)
        assert await gate.admit(who, "tiny") is None
        await gate.record(who, used(60, 40))
        await gate.close()
        gate = KeyGate(path, clock)
        who = await let_in(gate, made.text)
        problem = await gate.admit(who, "tiny")
        assert problem is not None and problem.code == "insufficient_quota"
        assert problem.message == "this API key has used 100 of its 100 tokens per day"
        assert problem.retry_after == usage.period_left("day", clock.now)
        clock.now += problem.retry_after
        assert await gate.admit(who, "tiny") is None

        who = await let_in(gate, ever.text)
        await gate.record(who, used(10))
        problem = await gate.admit(who, "tiny")
        assert problem is not None and problem.retry_after is None
        await gate.close()

    asyncio.run(main())


# The whole server ----------------------------------------------------------------------------------------------------
@pytest.fixture
def served(path: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(url, the audit log) of a server with keys."""
    audit = tmp_path / "audit.jsonl"
    config = Config(keys=str(path), logging=Logging(requests=False, audit=str(audit)))

    with live(config=config, make=keyed_server) as running:
        yield running.url, audit


def ask(url: str, key: str = "", model: str = "tiny", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "SECRET"}], "max_tokens": 4, **more}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=30)


def test_a_server_with_keys_over_http(path: Path, served: tuple[str, Path]) -> None:
    url, audit = served
    made = new(path, models=frozenset({"tiny"}), rpm=3)
    assert ask(url).status_code == ask(url, "herder_wrong_key").status_code == 401
    assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 401
    assert httpx.get(f"{url}/health/live", trust_env=False).status_code == 200
    for key, status in (
        (made, 403),
        (new(path, "boss", administers=True), 200),
        (new(path, "prom", observes=True), 200),
    ):
        seen = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {key.text}"}, trust_env=False)
        assert seen.status_code == status and ("--metrics" in seen.text) == (status == 403)
    assert ask(url, made.text, "nothing").status_code == 404
    answer = ask(url, made.text, "tiny-alias")
    assert answer.status_code == 200, answer.text
    streamed = ask(url, made.text, stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert ask(url, made.text, max_tokens="x").status_code == 400  # refused before it is admitted
    assert ask(url, made.text).status_code == 200
    full = ask(url, made.text)
    assert full.status_code == 429 and 1 <= int(full.headers["retry-after"]) <= 60

    database = keys_store.connect(path)
    (row,) = usage.report(database)
    database.close()
    assert (row.key, row.model, row.total.requests, row.total.failed) == ("alice", "tiny", 3, 0)
    assert row.total.completion_tokens == 12
    assert row.total.prompt_tokens == 3 * answer.json()["usage"]["prompt_tokens"]

    assert stat.S_IMODE(audit.stat().st_mode) == 0o600
    text = audit.read_text()
    assert made.text not in text and "SECRET" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    denied = [(line["status"], line["reason"], line["key"]) for line in lines if line["event"] == "denied"]
    assert denied[:3] == [(401, "invalid_api_key", "")] * 3
    assert denied[3:] == [(403, "forbidden", "alice"), (429, "rate_limit_exceeded", "alice")]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["id"] for line in requests][:2] == [answer.headers["x-request-id"], streamed.headers["x-request-id"]]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert [line["completion_tokens"] for line in requests] == [4, 4, 4]
    assert all(line["status"] == 200 and line["model"] == "tiny" and "prompt" not in line for line in requests)


def test_prompts_are_in_the_audit_log_when_they_are_asked_for(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"

    async def main() -> None:
        gate = open_gate(Config(logging=Logging(audit=str(audit))))
        who = await gate.authorize(connection())
        assert isinstance(who, Principal) and await gate.admit(who, "tiny") is None
        await gate.record(who, Usage("id", "/", "tiny", 200, prompt='a\n"b"\u2028{"event": "forged"}'))
        audit.rename(tmp_path / "audit.1")  # rotated
        await gate.record(who, Usage("id", "/", "tiny", 499))
        await gate.close()

    asyncio.run(main())
    (first,) = (tmp_path / "audit.1").read_text().splitlines()
    (second,) = audit.read_text().splitlines()
    assert json.loads(first)["prompt"] == 'a\n"b"\u2028{"event": "forged"}' and json.loads(first)["key"] == ""
    assert json.loads(second)["status"] == 499


def test_an_audit_log_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"audit log .* cannot be written: No such file"):
        open_gate(Config(logging=Logging(audit=str(tmp_path / "no" / "audit"))))
    shared = tmp_path / "audit"
    shared.touch()
    shared.chmod(0o644)
    with pytest.raises(StorageError, match="others can reach it"):
        open_gate(Config(logging=Logging(audit=str(shared))))


def test_without_keys_everybody_is_let_in() -> None:
    gate = open_gate(Config())
    assert isinstance(gate, Open)


def test_a_client_sees_the_end_only_when_it_has_been_recorded() -> None:
    """So that kill -9 after the last byte of an answer loses nothing, streamed or not."""
    recorded: list[Usage] = []

    class Slow(Open):
        async def record(self, principal: Principal, usage: Usage) -> None:
            await asyncio.sleep(0.2)
            recorded.append(usage)

    def make(config: Config) -> Server:
        server = server_of(fake_llm(), config=config)
        server.gate = Slow()
        return server

    with live(make=make) as running:
        answer = ask(running.url)
        assert [usage.completion_tokens for usage in recorded] == [answer.json()["usage"]["completion_tokens"]]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, trust_env=False) as response:
            assert "data: [DONE]" in response.iter_lines()
            assert len(recorded) == 2
        assert recorded[1].completion_tokens == 4 and recorded[1].status == 200
