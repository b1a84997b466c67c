"""Gemini's answers: whole, and as streams whose pieces, as Gemini's own client reads them, are the whole."""

from __future__ import annotations

import json
from typing import Any

from google.genai.types import GenerateContentResponse
from hypothesis import given
from hypothesis import strategies as st

from herder.serve.dialect import Call, Context, Problem
from herder.serve.dialects import gemini
from herder.serve.dialects.gemini_stream import Generation
from herder.serve.wire import (
    AnswerEvent,
    CallArguments,
    CallStarted,
    Done,
    Ended,
    ReasoningDelta,
    Started,
    TextDelta,
)
from tests.serve.dialects.events import streams, token_logprobs, whole

CONTEXT = Context("7", 1700000000, "m", {}, lambda token: bytes([token]))
DONE = Done(11, 5, 4, 2, 0.1, 0.2, 0.3)


def request(alt: str = "sse", **config: Any) -> Generation:
    body = {"contents": [{"parts": [{"text": "x"}]}], "generationConfig": config}
    return gemini.parse_stream(Call(body, {"model": "m"}, {"alt": alt}))


def chunks(events: list[AnswerEvent], asked: Generation) -> list[dict[str, Any]]:
    encoder = gemini.stream(asked, CONTEXT)
    data = b"".join([encoder.event(event) for event in events]).decode()
    if not asked.sse:
        assert encoder.content_type == "application/json"
        found: list[dict[str, Any]] = json.loads(data)
        return found
    assert encoder.content_type == "text/event-stream" and data.endswith("\r\n\r\n")
    return [json.loads(block.removeprefix("data: ")) for block in data.split("\r\n\r\n")[:-1]]


def test_a_whole_answer() -> None:
    events = [
        Started(11, 4),
        ReasoningDelta(0, "Hm."),
        TextDelta(0, "It rains.", (token_logprobs(65),)),
        CallStarted(0, 0, "call_ab", "weather"),
        CallArguments(0, 0, '{"city": "Oslo"}'),
        Ended(0, "tool_calls", None, 5, 7),
        DONE,
    ]
    body = gemini.answer(request(responseLogprobs=True, logprobs=2), whole(events, 1), CONTEXT)
    token = {"token": "A", "tokenId": 65, "logProbability": -65 / 7}
    never = {"token": "B", "tokenId": 66, "logProbability": -9999.0}
    assert body == {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [
                        {"text": "Hm.", "thought": True},
                        {"text": "It rains."},
                        {"functionCall": {"id": "call_ab", "name": "weather", "args": {"city": "Oslo"}}},
                    ],
                },
                "index": 0,
                "finishReason": "STOP",
                "avgLogprobs": -65 / 7,
                "logprobsResult": {
                    "chosenCandidates": [token],
                    "topCandidates": [{"candidates": [token, never]}],
                    "logProbabilitySum": -65 / 7,
                },
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 11,
            "candidatesTokenCount": 3,
            "totalTokenCount": 16,
            "cachedContentTokenCount": 4,
            "thoughtsTokenCount": 2,
        },
        "modelVersion": "m",
        "responseId": "7",
    }
    GenerateContentResponse.model_validate(body)


def test_a_call_that_was_cut_off_is_left_out() -> None:
    events = [
        Started(11),
        CallStarted(0, 0, "call_ab", "weather"),
        CallArguments(0, 0, '{"ci'),
        Ended(0, "length", None, 5, 7),
        DONE,
    ]
    [candidate] = gemini.answer(request(), whole(events, 1), CONTEXT)["candidates"]
    assert candidate == {"content": {"role": "model", "parts": []}, "index": 0, "finishReason": "MAX_TOKENS"}
    [last] = chunks(events, request())
    assert last["candidates"] == [candidate]


@given(st.data(), st.integers(1, 3), st.booleans(), st.sampled_from(["sse", "json"]))
def test_the_stream_joins_to_the_answer(data: st.DataObject, n: int, logprobs: bool, alt: str) -> None:
    config: dict[str, Any] = {"responseLogprobs": True} if logprobs else {}
    asked = request(alt, candidateCount=n, **config)
    events = data.draw(streams(n, logprobs=logprobs))
    expected = gemini.answer(asked, whole(events, n), CONTEXT)
    found = chunks(events, asked)
    parts: list[list[dict[str, Any]]] = [[] for _ in range(n)]
    tokens: list[list[int]] = [[] for _ in range(n)]
    reasons = {}
    for chunk in found:
        GenerateContentResponse.model_validate(chunk)
        assert (chunk["modelVersion"], chunk["responseId"]) == ("m", "7")
        for candidate in chunk["candidates"]:
            i = candidate["index"]
            for part in candidate["content"]["parts"]:
                before = parts[i][-1] if parts[i] else {}
                if "text" in part and "text" in before and ("thought" in part) == ("thought" in before):
                    before["text"] += part["text"]
                else:
                    parts[i].append(part)
            chosen = candidate.get("logprobsResult", {}).get("chosenCandidates", [])
            tokens[i] += [one["tokenId"] for one in chosen]
            if "finishReason" in candidate:
                reasons[i] = candidate["finishReason"]
    for i, candidate in enumerate(expected["candidates"]):
        assert parts[i] == candidate["content"]["parts"] and reasons[i] == candidate["finishReason"]
        result = candidate.get("logprobsResult", {"chosenCandidates": []})
        assert tokens[i] == [one["tokenId"] for one in result["chosenCandidates"]]
    assert found[-1]["usageMetadata"] == expected["usageMetadata"]


def test_errors_end_both_streams() -> None:
    problem = Problem("internal", "it broke")
    body = gemini.error(problem)[2]
    encoder = gemini.stream(request(), CONTEXT)
    assert json.loads(encoder.error(problem).decode().removeprefix("data: ")) == body
    encoder = gemini.stream(request("json"), CONTEXT)
    begun = encoder.event(TextDelta(0, "a"))
    assert json.loads(begun + encoder.error(problem))[1] == body
