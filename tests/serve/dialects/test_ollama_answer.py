"""Ollama's answers: recorded pairs of request and response, and streams that join to the whole."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ollama import ChatResponse, GenerateResponse

from herder.core.request import TokenLogprob
from herder.serve.dialect import Call, Context, Problem
from herder.serve.dialects import ollama_request
from herder.serve.dialects.ollama_encoding import Encoding, error, moment
from herder.serve.wire import (
    AnswerEvent,
    CallArguments,
    CallStarted,
    ChatRequest,
    Done,
    Ended,
    ReasoningDelta,
    Started,
    TextDelta,
    TextRequest,
)
from tests.serve.dialects.events import streams
from tests.serve.dialects.events import whole as put_together

CONTEXT = Context("id", 1_700_000_000, "served", {"model": "m"}, lambda token: bytes([token % 256]))
HEAD = {"model": "m", "created_at": "2023-11-14T22:13:20.000000Z"}
END = {
    "done": True,
    "total_duration": 1_100_000_000,
    "load_duration": 500_000_000,
    "prompt_eval_count": 11,
    "prompt_eval_duration": 200_000_000,
    "eval_count": 4,
    "eval_duration": 300_000_000,
}
DONE = Done(11, 4, 5, 0, 0.1, 0.2, 0.3)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def asked(chats: bool, **body: Any) -> ChatRequest | TextRequest:
    parse = ollama_request.chat if chats else ollama_request.generate
    wanted = parse(Call({"model": "m", **body})).wanted
    assert wanted is not None
    return wanted


def both(chats: bool, request: ChatRequest | TextRequest, events: list[AnswerEvent]) -> tuple[Any, list[Any]]:
    """The whole answer and the lines of the stream."""
    encoding = Encoding(chats, load=0.5)
    stream = encoding.stream(request, CONTEXT)
    data = b"".join([stream.event(event) for event in events])
    assert stream.content_type == "application/x-ndjson" and data.endswith(b"\n")
    whole = encoding.answer(request, put_together(events, 1), CONTEXT)
    return json.loads(json.dumps(whole, allow_nan=False)), [json.loads(line) for line in data.splitlines()]


# Recorded pairs ------------------------------------------------------------------------------------------------------
def test_a_chat_that_calls_a_tool() -> None:
    request = asked(True, messages=[{"role": "user", "content": "weather in Oslo?"}], tools=[WEATHER])
    whole, lines = both(
        True,
        request,
        [
            Started(11),
            ReasoningDelta(0, "hm"),
            TextDelta(0, "I "),
            TextDelta(0, "look"),
            CallStarted(0, 0, "call_a", "weather"),
            CallArguments(0, 0, '{"city":'),
            CallArguments(0, 0, ' "Oslo"}'),
            CallStarted(0, 1, "call_b", "weather"),
            CallArguments(0, 1, "{}"),
            Ended(0, "tool_calls", None, 4, 7),
            DONE,
        ],
    )
    first = {"id": "call_a", "function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}}
    second = {"id": "call_b", "function": {"index": 1, "name": "weather", "arguments": {}}}
    message = {"role": "assistant", "content": "I look", "thinking": "hm", "tool_calls": [first, second]}
    assert whole == HEAD | {"message": message, "done_reason": "stop"} | END
    said: list[dict[str, Any]] = [
        {"content": "", "thinking": "hm"},
        {"content": "I "},
        {"content": "look"},
        {"content": "", "tool_calls": [first]},
        {"content": "", "tool_calls": [second]},
    ]
    assert lines[:-1] == [HEAD | {"message": {"role": "assistant"} | one, "done": False} for one in said]
    assert lines[-1] == HEAD | {"message": {"role": "assistant", "content": ""}, "done_reason": "stop"} | END


def test_a_generation_with_log_probabilities() -> None:
    request = asked(False, prompt="hi", logprobs=True, top_logprobs=1)
    found = (TokenLogprob(0xC3, -0.5, ((0xC3, -0.5),)), TokenLogprob(0xA9, float("-inf")))
    whole, lines = both(False, request, [Started(11), TextDelta(0, "é", found), Ended(0, "length", None, 4, 7), DONE])
    entry = {"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3]}
    logprobs = [entry | {"top_logprobs": [entry]}, {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xA9]}]
    assert whole == HEAD | {"response": "é", "logprobs": logprobs, "done_reason": "length"} | END
    assert lines == [
        HEAD | {"response": "é", "logprobs": logprobs, "done": False},
        HEAD | {"response": "", "done_reason": "length"} | END,
    ]


def test_a_call_that_was_cut_off_is_left_out() -> None:
    request = asked(True, messages=[{"role": "user", "content": "x"}], tools=[WEATHER])
    cut: list[AnswerEvent] = [
        CallStarted(0, 0, "a", "weather"),
        CallArguments(0, 0, '{"city": "O'),
        Ended(0, "length", None, 4, 7),
    ]
    whole, lines = both(True, request, [Started(11), *cut, DONE])
    assert whole["message"] == {"role": "assistant", "content": ""} and whole["done_reason"] == "length"
    assert len(lines) == 1 and lines[0]["done_reason"] == "length"


def test_only_loaded() -> None:
    assert Encoding(False).only("unload", "m", 1_700_000_000) == HEAD | {
        "response": "",
        "done": True,
        "done_reason": "unload",
    }
    loaded = Encoding(True, load=0.25).only("load", "m", 1_700_000_000)
    assert loaded["message"]["content"] == "" and loaded["load_duration"] == 250_000_000


def test_errors() -> None:
    assert error(Problem("not_found", "no")) == (404, {}, {"error": "no"})
    assert error(Problem("overloaded", "full", retry_after=0.2)) == (503, {"retry-after": "1"}, {"error": "full"})
    assert error(Problem("unauthorized", "key"))[1] == {"www-authenticate": "Bearer"}
    stream = Encoding(True).stream(asked(True, messages=[{"role": "user", "content": "x"}]), CONTEXT)
    assert json.loads(stream.error(Problem("internal", "broken"))) == {"error": "broken"}


def test_moments() -> None:
    assert moment(0) == "1970-01-01T00:00:00.000000Z"


# Streams join to the whole -------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_stream_joins_to_the_answer(data: st.DataObject) -> None:
    chats, logprobs = data.draw(st.booleans()), data.draw(st.booleans())
    events = data.draw(streams(1, calls=chats, reasoning=True, logprobs=logprobs))
    said = {"messages": [{"role": "user", "content": "x"}]} if chats else {"prompt": "x"}
    request = asked(chats, **said, logprobs=logprobs)
    whole, lines = both(chats, request, events)
    kind = ChatResponse if chats else GenerateResponse
    for line in (whole, *lines):
        kind(**line)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    joined = dict(lines[-1])
    if chats:
        messages = [line["message"] for line in lines]
        message: dict[str, Any] = {"role": "assistant", "content": "".join([one["content"] for one in messages])}
        if thinking := "".join([one.get("thinking", "") for one in messages]):
            message["thinking"] = thinking
        if calls := [call for one in messages for call in one.get("tool_calls", ())]:
            message["tool_calls"] = calls
        joined["message"] = message
    else:
        joined["response"] = "".join([line["response"] for line in lines])
        if thinking := "".join([line.get("thinking", "") for line in lines]):
            joined["thinking"] = thinking
    if logprobs:
        joined["logprobs"] = [one for line in lines for one in line.get("logprobs", ())]
    assert joined == whole
