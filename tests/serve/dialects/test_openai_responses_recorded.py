"""Requests and responses of OpenAI's responses as they were recorded: recorded/openai_responses.json, over a socket.

The model is the fake one, which says the same noise to the same prompt. After a change that is meant:
`python -m tests.serve.dialects.test_openai_responses_recorded`, and read the difference.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from herder.serve.config import Config
from tests.serve.dialects.calling import calling_llm
from tests.serve.live import live
from tests.serve.models import server_of

RECORDED = Path(__file__).parent / "recorded" / "openai_responses.json"
ASKED: dict[str, Any] = {"model": "tiny", "input": "hello", "max_output_tokens": 4, "temperature": 0}
WORDS = {"structured_outputs": {"choice": ["yes", "no"]}, "max_output_tokens": 9}
PARAMETERS = {"type": "object", "additionalProperties": False}
TOOL = {
    "tools": [{"type": "function", "name": "f", "parameters": PARAMETERS, "strict": True}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_output_tokens": 99,
}
# Method, path and body; {id} is that of the first response, which is stored.
REQUESTS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "created": ("POST", "/v1/responses", ASKED | {"instructions": "Be brief.", "metadata": {"a": "b"}}),
    "read back": ("GET", "/v1/responses/{id}", None),
    "its input": ("GET", "/v1/responses/{id}/input_items?order=asc", None),
    "continued": ("POST", "/v1/responses", ASKED | {"previous_response_id": "{id}", "input": "more"}),
    "counted": ("POST", "/v1/responses/input_tokens", {"model": "tiny", "input": "hello"}),
    "streamed": ("POST", "/v1/responses", ASKED | WORDS | {"stream": True}),
    "streamed, cut": ("POST", "/v1/responses", ASKED | {"stream": True}),
    "log-probabilities": ("POST", "/v1/responses", ASKED | {"max_output_tokens": 2, "top_logprobs": 1}),
    "a tool": ("POST", "/v1/responses", ASKED | TOOL),
    "a tool, streamed": ("POST", "/v1/responses", ASKED | TOOL | {"stream": True}),
    "refused field": ("POST", "/v1/responses", ASKED | {"background": True}),
    "refused tool": ("POST", "/v1/responses", ASKED | {"tools": [{"type": "web_search"}]}),
    "refused cancellation": ("POST", "/v1/responses/{id}/cancel", {}),
    "deleted": ("DELETE", "/v1/responses/{id}", None),
    "gone": ("GET", "/v1/responses/{id}", None),
    "gone, continued": ("POST", "/v1/responses", ASKED | {"previous_response_id": "{id}"}),
}


def exchange(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The response as it is kept: what differs from time to time is named instead."""
    response = client.request(method, path, json=body)
    text = re.sub(r"\b(resp_|msg_|fc_|rs_|call_)[0-9a-f]{24}", r"\1ID", response.text)
    text = re.sub(r'"(created_at|completed_at)":\d{10}\b', r'"\1":0', text)
    # What is cached depends on what was asked before.
    text = re.sub(r'"(cached_tokens|cache_write_tokens)":\d+', r'"\1":0', text)
    kept: dict[str, Any] = {"status": response.status_code, "type": response.headers["content-type"]}
    if kept["type"] == "text/event-stream":
        blocks = [block.split("\ndata: ") for block in text.removesuffix("\n\n").split("\n\n")]
        events = [loaded(data) for _, data in blocks]
        assert [f"event: {event['type']}" for event in events] == [name for name, _ in blocks]
        return kept | {"events": events}
    return kept | {"body": loaded(text)}


def loaded(text: str) -> Any:
    """JSON, its numbers to six digits: the last ones are the machine's."""
    return json.loads(text, parse_float=lambda digits: round(float(digits), 6))


def exchanges() -> Iterator[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        config = Config(responses=f"{folder}/responses.db")

        with (
            live(config=config, make=lambda config: server_of(calling_llm(), config=config, names=("tiny",))) as served,
            httpx.Client(base_url=served.url) as client,
        ):
            kept = client.post("/v1/responses", json=REQUESTS["created"][2]).json()["id"]
            for name, (method, path, body) in REQUESTS.items():
                filled = None if body is None else json.loads(json.dumps(body).replace("{id}", kept))
                yield name, exchange(client, method, path.replace("{id}", kept), filled)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return dict(exchanges())


@pytest.mark.parametrize("name", REQUESTS)
def test_recorded(found: dict[str, Any], name: str) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert recorded.keys() == REQUESTS.keys(), "record again: see the top of this file"
    method, path, body = REQUESTS[name]
    assert recorded[name]["request"] == {"method": method, "path": path, "body": body}
    assert found[name] == recorded[name]["response"]


def record() -> None:
    pairs = {}
    for name, response in exchanges():
        method, path, body = REQUESTS[name]
        pairs[name] = {"request": {"method": method, "path": path, "body": body}, "response": response}
    lines = ",\n".join([f"{json.dumps(name)}: {json.dumps(pair)}" for name, pair in pairs.items()])
    RECORDED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
