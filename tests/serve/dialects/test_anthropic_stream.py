"""Anthropic's answers: whole, and as a stream that Anthropic's own client puts together."""

from __future__ import annotations

import json
from typing import Any

from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from pydantic import TypeAdapter

from herder.serve.dialect import Call, Context, Problem
from herder.serve.dialects import anthropic
from herder.serve.wire import (
    Answer,
    AnswerEvent,
    CallArguments,
    CallStarted,
    ChatRequest,
    Done,
    Ended,
    ReasoningDelta,
    Started,
    TextDelta,
)
from tests.serve.dialects.events import streams, whole

CONTEXT = Context("7", 1700000000, "m")
DONE = Done(11, 5, 4, 2, 0.1, 0.2, 0.3)
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def request(**body: Any) -> ChatRequest:
    said = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], **body}
    return anthropic.parse(Call(said))


def answered(*events: AnswerEvent, asked: ChatRequest | None = None) -> dict[str, Any]:
    answer: Answer = whole([Started(11, 4), *events, DONE], 1)
    return anthropic.answer(asked or request(), answer, CONTEXT)


def streamed(*events: AnswerEvent, asked: ChatRequest | None = None) -> list[dict[str, Any]]:
    """The events of the stream, each under its own name."""
    encoder = anthropic.stream(asked or request(), CONTEXT)
    found = []
    for block in b"".join([encoder.event(event) for event in events]).decode().split("\n\n")[:-1]:
        name, data = block.split("\n", 1)
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def test_a_whole_answer() -> None:
    body = answered(
        ReasoningDelta(0, "Hm."),
        TextDelta(0, "It "),
        TextDelta(0, "rains."),
        CallStarted(0, 0, "call_ab", "weather"),
        CallArguments(0, 0, '{"city": "Oslo"}'),
        Ended(0, "tool_calls", None, 5, 7),
    )
    assert body == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "text", "text": "It rains."},
            {"type": "tool_use", "id": "toolu_ab", "name": "weather", "input": {"city": "Oslo"}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 2},
            "service_tier": "standard",
        },
    }
    Message.model_validate(body, strict=True)


def test_why_it_stopped() -> None:
    def why(reason: Any, stop: str | None, tokens: int, **body: Any) -> tuple[str, str | None]:
        found = answered(Ended(0, reason, stop, tokens, 7), asked=request(**body))
        return found["stop_reason"], found["stop_sequence"]

    assert why("stop", "<|im_end|>", 3) == ("end_turn", None)
    assert why("stop", "###", 3, stop_sequences=["###"]) == ("stop_sequence", "###")
    assert why("length", None, 9) == ("max_tokens", None)
    assert why("length", None, 5) == ("model_context_window_exceeded", None)
    assert why("length", None, 5, deadline=1) == ("max_tokens", None)


def test_a_call_that_was_cut_off_is_left_out() -> None:
    begun = CallStarted(0, 0, "call_ab", "weather"), CallArguments(0, 0, '{"ci'), Ended(0, "length", None, 9, 7)
    assert answered(TextDelta(0, "a"), *begun)["content"] == [{"type": "text", "text": "a"}]


def test_a_stream() -> None:
    found = streamed(
        Started(11, 4),
        TextDelta(0, "a"),
        TextDelta(0, "é"),
        CallStarted(0, 0, "call_ab", "weather"),
        CallArguments(0, 0, "{"),
        CallArguments(0, 0, "}"),
        Ended(0, "tool_calls", None, 5, 7),
        DONE,
    )
    assert [event["type"] for event in found] == [
        "message_start", "ping",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert found[0]["message"]["stop_reason"] is None and found[0]["message"]["usage"]["input_tokens"] == 7
    assert found[2] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert found[4]["delta"] == {"type": "text_delta", "text": "é"}
    call = {"type": "tool_use", "id": "toolu_ab", "name": "weather", "input": {}}
    assert found[6] == {"type": "content_block_start", "index": 1, "content_block": call}
    assert found[7]["delta"] == {"type": "input_json_delta", "partial_json": "{"}
    assert found[10]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[10]["usage"]["output_tokens"] == 5


@given(streams(1))
def test_the_stream_joins_to_the_answer(events: list[AnswerEvent]) -> None:
    message: Any = None
    buffers: dict[int, bytes] = {}
    for value in streamed(*events):
        if value["type"] != "ping":
            event = EVENT.validate_python(value, strict=True)
            message = accumulate_event(event=event, current_snapshot=message, json_bufs=buffers)
    joined = message.to_dict()
    expected = anthropic.answer(request(), whole(events, 1), CONTEXT)
    for block in joined["content"]:
        block.pop("parsed_output", None)
    assert {name: joined[name] for name in expected} == expected


def test_a_stream_ends_with_an_error() -> None:
    data = anthropic.stream(request(), CONTEXT).error(Problem("overloaded", "full"))
    assert data == (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"full"}}\n\n')
