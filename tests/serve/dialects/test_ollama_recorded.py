"""Requests and responses of Ollama's API as they were recorded: recorded/ollama.json, over a socket.

The model is the fake one, which says the same noise to the same prompt. After a change that is meant:
`python -m tests.serve.dialects.test_ollama_recorded`, and read the difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.serve.dialects import ollama_fields as fields
from herder.serve.fields import Table
from tests.serve.dialects.bodies import bodies
from tests.serve.live import live
from tests.serve.models import fake_llm

RECORDED = Path(__file__).parent / "recorded" / "ollama.json"
USER = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [USER], "options": {"num_predict": 3}, "stream": False}
TEXT: dict[str, Any] = {"model": "tiny:latest", "prompt": "ab", "options": {"num_predict": 3, "seed": 1}}
REQUESTS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "load": ("POST", "/api/generate", {"model": "tiny", "keep_alive": -1}),
    "chat": ("POST", "/api/chat", CHAT),
    "chat, streamed": ("POST", "/api/chat", CHAT | {"stream": None}),
    "chat, log-probabilities": ("POST", "/api/chat", CHAT | {"logprobs": True, "top_logprobs": 1}),
    "chat, a schema": (
        "POST",
        "/api/chat",
        CHAT | {"format": {"type": "object", "additionalProperties": False}, "options": {"num_predict": 40}},
    ),
    "generate": ("POST", "/api/generate", TEXT | {"stream": False, "system": "be kind"}),
    "generate, raw, streamed": ("POST", "/api/generate", TEXT | {"raw": True}),
    "embed": ("POST", "/api/embed", {"model": "tiny", "input": ["a", "b"], "dimensions": 2}),
    "tags": ("GET", "/api/tags", None),
    "ps": ("GET", "/api/ps", None),
    "show": ("POST", "/api/show", {"model": "tiny-alias"}),
    "version": ("GET", "/api/version", None),
    "unknown field": ("POST", "/api/chat", CHAT | {"frobnicate": 1}),
    "unknown option": ("POST", "/api/chat", CHAT | {"options": {"frobnicate": 1}}),
    "refused option": ("POST", "/api/chat", CHAT | {"options": {"mirostat": 1}}),
    "too much context": ("POST", "/api/chat", CHAT | {"options": {"num_ctx": 1025}}),
    "unknown model": ("POST", "/api/chat", CHAT | {"model": "llama9"}),
    "too long": ("POST", "/api/generate", TEXT | {"prompt": "x " * 999}),
    "copy": ("POST", "/api/copy", {"source": "a", "destination": "b"}),
    "blob": ("POST", "/api/blobs/sha256:0", {}),
    "pull": ("POST", "/api/pull", {"model": "smollm2"}),
    "delete": ("DELETE", "/api/delete", {"model": "tiny"}),
    "unknown path": ("GET", "/api/nothing", None),
}


def exchange(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The response as it is kept: what differs from time to time is named instead."""
    response = client.request(method, path, json=body)
    text = re.sub(r'"created_at":"[^"]*"', '"created_at":"NOW"', response.text)
    text = re.sub(r'_duration":\d+', '_duration":0', text)
    kept: dict[str, Any] = {"status": response.status_code, "type": response.headers["content-type"]}
    if kept["type"] == "application/x-ndjson":
        return kept | {"lines": [loaded(line) for line in text.splitlines()]}
    return kept | {"body": loaded(text)}


def loaded(text: str) -> Any:
    """JSON, its numbers to six digits: the last ones are the machine's."""
    return json.loads(text, parse_float=lambda digits: round(float(digits), 6))


def connections() -> Iterator[httpx.Client]:
    with live(fake_llm(), names=("tiny",)) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        client.post("/api/generate", json={"model": "tiny", "keep_alive": -1})  # what is recorded is of a loaded model
        yield client


client = pytest.fixture(scope="module")(connections)


@pytest.mark.parametrize("name", REQUESTS)
def test_recorded(client: httpx.Client, name: str) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert recorded.keys() == REQUESTS.keys(), "record again: see the top of this file"
    method, path, body = REQUESTS[name]
    assert recorded[name]["request"] == {"method": method, "path": path, "body": body}
    assert exchange(client, method, path, body) == recorded[name]["response"]


LEAST: list[tuple[Table, dict[str, Any]]] = [
    (fields.CHAT, {"messages": [USER], "options": {"num_predict": 2}}),
    (fields.GENERATE, {"prompt": "hi", "options": {"num_predict": 2}}),
    (fields.EMBED, {"input": "hi"}),
    (fields.EMBEDDINGS, {"prompt": "hi"}),
    (fields.SHOW, {}),
    (fields.PULL, {}),
]


@pytest.mark.parametrize(("table", "least"), LEAST, ids=[table.request for table, _ in LEAST])
@settings(max_examples=15)
@given(data=st.data())
def test_no_body_is_a_failure_of_ours(
    client: httpx.Client, table: Table, least: dict[str, Any], data: st.DataObject
) -> None:
    body = data.draw(bodies(table, "user", "json", "5m", model="tiny", **least))
    kept = {name: value for name, value in body.items() if name != "keep_alive"}  # one that unloads is tested elsewhere
    headers = {"x-herder-deadline": "20"}
    response = client.post(table.request.split()[1], content=json.dumps(kept), headers=headers)
    assert response.status_code in (200, 400, 403, 404), response.text
    for line in response.text.splitlines():
        document = json.loads(line)
        assert response.status_code == 200 or list(document) == ["error"]


def record() -> None:
    pairs = {}
    for client in connections():
        for name, (method, path, body) in REQUESTS.items():
            request = {"method": method, "path": path, "body": body}
            pairs[name] = {"request": request, "response": exchange(client, method, path, body)}
    lines = ",\n".join([f"{json.dumps(name)}: {json.dumps(pair)}" for name, pair in pairs.items()])
    RECORDED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
