"""Requests and responses of OpenAI's dialects as they were recorded: recorded/openai.json, over a socket.

The model is the fake one, which says the same noise to the same prompt. After a change that is meant:
`python -m tests.serve.dialects.test_openai_recorded`, and read the difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.dialects.calling import calling_llm
from tests.serve.live import live

RECORDED = Path(__file__).parent / "recorded" / "openai.json"
USER = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "additionalProperties": False}}}
CHAT: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 4, "seed": 1}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 3, "temperature": 0}
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
REQUESTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat, sampled twice, with a label": (
        "/v1/chat/completions",
        CHAT | {"temperature": 1, "n": 2, "metadata": {"a": "b"}, "service_tier": "auto"},
    ),
    "chat, log-probabilities": ("/v1/chat/completions", CHAT | {"max_tokens": 2, "logprobs": True, "top_logprobs": 2}),
    "chat, streamed": ("/v1/chat/completions", CHAT | STREAM),
    "chat, a choice": (
        "/v1/chat/completions",
        CHAT | {"structured_outputs": {"choice": ["yes", "no"]}, "max_tokens": 9},
    ),
    "chat, a tool": (
        "/v1/chat/completions",
        CHAT | {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 99},
    ),
    "chat, a tool, streamed": (
        "/v1/chat/completions",
        CHAT | STREAM | {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 99},
    ),
    "chat, cut": (
        "/v1/chat/completions",
        CHAT | {"messages": [{"role": "user", "content": "x " * 999}, *USER], "truncate_prompt_tokens": -1},
    ),
    "completion": ("/v1/completions", TEXT),
    "completion, echo, log-probabilities": ("/v1/completions", TEXT | {"echo": True, "logprobs": 1}),
    "completion, two prompts": ("/v1/completions", TEXT | {"prompt": ["ab", [65, 66]]}),
    "completion, streamed": ("/v1/completions", TEXT | STREAM),
    "embedding": ("/v1/embeddings", {"model": "tiny", "input": ["a"], "dimensions": 3}),
    "embedding, base64": (
        "/v1/embeddings",
        {"model": "tiny", "input": "a", "dimensions": 3, "encoding_format": "base64"},
    ),
    "models": ("/v1/models", None),
    "model": ("/v1/models/tiny-alias", None),
    "tokenize": ("/tokenize", {"model": "tiny", "prompt": "the hen", "return_token_strs": True}),
    "detokenize": ("/detokenize", {"model": "tiny", "tokens": [1, 40, 41]}),
    "score": ("/v1/score", {"model": "tiny", "input": "ab"}),
    "unknown field": ("/v1/chat/completions", CHAT | {"frobnicate": 1}),
    "refused field": ("/v1/completions", TEXT | {"best_of": 4}),
    "unknown model": ("/v1/chat/completions", CHAT | {"model": "gpt-9"}),
    "too long": ("/v1/completions", TEXT | {"prompt": "x " * 999}),
    "unknown path": ("/v1/files", None),
}


def exchange(client: httpx.Client, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The response as it is kept: what differs from time to time is named instead."""
    response = client.get(path) if body is None else client.post(path, json=body)
    text = re.sub(r'"(chatcmpl-|cmpl-|call_)[0-9a-f]{24}"', r'"\1ID"', response.text)
    text = re.sub(r'"created":\s?\d{10}\b', '"created":0', text)
    text = re.sub(r'"cached_tokens":\d+', '"cached_tokens":0', text)  # depends on what was asked before
    text = re.sub(r'"fp_[0-9a-f]{12}"', '"fp_F"', text)
    kept: dict[str, Any] = {"status": response.status_code, "type": response.headers["content-type"]}
    if kept["type"] == "text/event-stream":
        lines = text.removesuffix("\n\n").split("\n\n")
        assert lines.pop() == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
        return kept | {"events": [loaded(line.removeprefix("data: ")) for line in lines]}
    return kept | {"body": loaded(text)}


def loaded(text: str) -> Any:
    """JSON, its numbers to six digits: the last ones are the machine's."""
    return json.loads(text, parse_float=lambda digits: round(float(digits), 6))


def connections() -> Iterator[httpx.Client]:
    with live(calling_llm(), names=("tiny",)) as served, httpx.Client(base_url=served.url) as client:
        yield client


client = pytest.fixture(scope="module")(connections)


@pytest.mark.parametrize("name", REQUESTS)
def test_recorded(client: httpx.Client, name: str) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert recorded.keys() == REQUESTS.keys(), "record again: see the top of this file"
    path, body = REQUESTS[name]
    assert recorded[name]["request"] == {"path": path, "body": body}
    assert exchange(client, path, body) == recorded[name]["response"]


def record() -> None:
    pairs = {}
    for client in connections():
        for name, (path, body) in REQUESTS.items():
            pairs[name] = {"request": {"path": path, "body": body}, "response": exchange(client, path, body)}
    lines = ",\n".join([f"{json.dumps(name)}: {json.dumps(pair)}" for name, pair in pairs.items()])
    RECORDED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
