"""Requests and responses of Anthropic's and Gemini's dialects as they were recorded, over a socket: recorded/*.json.

The model is the fake one, which says the same noise to the same prompt. After a change that is meant:
`python -m tests.serve.dialects.test_anthropic_gemini_recorded`, and read the difference.
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

RECORDED = Path(__file__).parent / "recorded" / "anthropic_gemini.json"
PARAMETERS = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}

# Anthropic
USER = {"role": "user", "content": "hello"}
SAID: dict[str, Any] = {"model": "tiny", "messages": [USER], "max_tokens": 4}
TOOLS: dict[str, Any] = {
    "max_tokens": 99,
    "tools": [{"name": "f", "input_schema": PARAMETERS}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
}
HISTORY = [
    USER,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"n": 7}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "seven"}]},
]

# Gemini
ASK = [{"role": "user", "parts": [{"text": "hello"}]}]
SHORT: dict[str, Any] = {"contents": ASK, "generationConfig": {"maxOutputTokens": 4}}
LOGPROBS = {"maxOutputTokens": 2, "responseLogprobs": True, "logprobs": 2}
FUNCTIONS: dict[str, Any] = {
    "contents": ASK,
    "generationConfig": {"maxOutputTokens": 99},
    "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": PARAMETERS}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
}
GEMINI = "/v1beta/models/tiny"

REQUESTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "message": ("/v1/messages", SAID),
    "message, sampled": ("/v1/messages", SAID | {"temperature": 1, "seed": 1, "top_k": 40, "system": "be brief"}),
    "message, streamed": ("/v1/messages", SAID | {"stream": True}),
    "message, a tool": ("/v1/messages", SAID | TOOLS),
    "message, a tool, streamed": ("/v1/messages", SAID | TOOLS | {"stream": True}),
    "message, a tool's result": ("/v1/messages", SAID | {"messages": HISTORY, "tools": TOOLS["tools"]}),
    "message, a schema": (
        "/v1/messages",
        SAID | {"max_tokens": 99, "output_config": {"format": {"type": "json_schema", "schema": PARAMETERS}}},
    ),
    "tokens": ("/v1/messages/count_tokens", {"model": "tiny", "messages": HISTORY}),
    "message, unknown field": ("/v1/messages", SAID | {"frobnicate": 1}),
    "message, refused field": ("/v1/messages", SAID | {"container": "c"}),
    "message, unknown model": ("/v1/messages", SAID | {"model": "claude-9"}),
    "message, too long": ("/v1/messages", SAID | {"messages": [{"role": "user", "content": "x " * 999}]}),
    "content": (f"{GEMINI}:generateContent", SHORT),
    "content, twice, log-probabilities": (
        f"{GEMINI}:generateContent",
        SHORT | {"generationConfig": LOGPROBS | {"candidateCount": 2, "temperature": 1, "seed": 1}},
    ),
    "content, as events": (f"{GEMINI}:streamGenerateContent?alt=sse", SHORT),
    "content, as an array": (f"{GEMINI}:streamGenerateContent", SHORT),
    "content, a function": (f"{GEMINI}:generateContent", FUNCTIONS),
    "content, a function, as events": (f"{GEMINI}:streamGenerateContent?alt=sse", FUNCTIONS),
    "content, an enum": (
        f"{GEMINI}:generateContent",
        SHORT | {"generationConfig": {"responseMimeType": "text/x.enum", "responseSchema": {"enum": ["yes", "no"]}}},
    ),
    "tokens of content": (f"{GEMINI}:countTokens", {"contents": ASK}),
    "embedding": (f"{GEMINI}:embedContent", {"content": ASK[0], "outputDimensionality": 3}),
    "embeddings": (
        f"{GEMINI}:batchEmbedContents",
        {"requests": [{"content": one, "output_dimensionality": 2} for one in ASK * 2]},
    ),
    "models": ("/v1beta/models", None),
    "a model": ("/v1beta/models/tiny-alias", None),
    "content, unknown field": (f"{GEMINI}:generateContent", SHORT | {"frobnicate": 1}),
    "content, refused tool": (f"{GEMINI}:generateContent", SHORT | {"tools": [{"googleSearch": {}}]}),
    "content, unknown model": ("/v1beta/models/gemini-9:generateContent", SHORT),
    "content, too long": (f"{GEMINI}:generateContent", {"contents": [{"parts": [{"text": "x " * 999}]}]}),
    "unknown path": ("/v1beta/files", None),
}


def exchange(client: httpx.Client, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The response as it is kept: what differs from time to time is named instead."""
    response = client.get(path) if body is None else client.post(path, json=body)
    text = re.sub(r'"(msg_|toolu_|call_)[0-9a-f]{24}"', r'"\1ID"', response.text)
    text = re.sub(r'"responseId":"[0-9a-f]{24}"', '"responseId":"ID"', text)
    # What is cached depends on what was asked before.
    text = re.sub(r',"cachedContentTokenCount":\d+', "", text)
    text = re.sub(r'"(input_tokens|cache_read_input_tokens)":\d+,', "", text)
    kept: dict[str, Any] = {"status": response.status_code, "type": response.headers["content-type"]}
    if not kept["type"].startswith("text/event-stream"):
        return kept | {"body": loaded(text)}
    blocks = text.replace("\r\n", "\n").removesuffix("\n\n").split("\n\n")
    return kept | {"events": [loaded(block.rpartition("data: ")[2]) for block in blocks]}


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
