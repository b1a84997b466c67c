"""Streams of OpenAI's responses: the order of their events, and that they join to the whole answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from herder.serve.dialect import Context, Problem
from herder.serve.dialects.openai_responses_answer import answer
from herder.serve.dialects.openai_responses_stream import Stream
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
from tests.serve.dialects.test_openai_responses import WEATHER, asked

CONTEXT = Context("7", 1700000000, "m", {}, lambda token: bytes([token]))
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
DONE = Done(5, 6, 2, 1, 0.1, 0.2, 0.3)


def read(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        kind, _, line = block.partition("\n")
        event = json.loads(line.removeprefix("data: "))
        assert kind == f"event: {event['type']}" and event["sequence_number"] == len(found)
        EVENT.validate_python(event, strict=True)
        found.append(event)
    return found


def streamed(events: list[AnswerEvent], **body: Any) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """The events, and what was kept."""
    kept: list[Mapping[str, Any]] = []
    encoder = Stream(asked(**body), CONTEXT, kept.append)
    return read(b"".join([encoder.event(event) for event in events])), kept


@given(st.data(), st.booleans(), st.booleans())
def test_events_join_to_the_answer(data: st.DataObject, logprobs: bool, summary: bool) -> None:
    body: dict[str, Any] = {"tools": [WEATHER], "reasoning": {"summary": "auto" if summary else None}}
    if logprobs:
        body["top_logprobs"] = 1
    events = data.draw(streams(1, logprobs=logprobs))
    found, kept = streamed(events, **body)
    expected = answer(asked(**body), whole(events, 1), CONTEXT)
    assert [found[0]["type"], found[1]["type"]] == ["response.created", "response.in_progress"]
    assert found[-1]["type"] == f"response.{expected['status']}"
    assert found[-1]["response"] == expected and kept == [expected]
    for index, item in enumerate(expected["output"]):
        own = [event for event in found if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added" and own[-1] == {
            "type": "response.output_item.done",
            "sequence_number": own[-1]["sequence_number"],
            "output_index": index,
            "item": item,
        }
        assert own[0]["item"]["id"] == item["id"] and own[0]["item"]["status"] == "in_progress"
        assert all(event["item_id"] == item["id"] for event in own if "item_id" in event)
        joined = "".join([event["delta"] for event in own if event["type"].endswith(".delta")])
        parts = item.get("content") or item.get("summary")
        assert joined == (parts[0]["text"] if parts else item["arguments"])
        if item["type"] == "message":
            pieces = [one for event in own if event["type"].endswith("text.delta") for one in event["logprobs"]]
            assert pieces == item["content"][0]["logprobs"] or not joined
    numbers = [event["output_index"] for event in found if "output_index" in event]
    assert numbers == sorted(numbers)  # one item after the other


@settings(max_examples=30)
@given(streams(1))
def test_the_client_s_own_snapshot_is_the_answer(events: list[AnswerEvent]) -> None:
    found, _ = streamed(events, tools=[WEATHER])
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for event in found:
        state.handle_event(EVENT.validate_python(event))
    expected = answer(asked(tools=[WEATHER]), whole(events, 1), CONTEXT)
    if expected["status"] == "completed":
        assert state._completed_response is not None
        assert state._completed_response.output_text == Response.model_validate(expected).output_text


def test_the_order_of_events() -> None:
    events: list[AnswerEvent] = [
        Started(5),
        ReasoningDelta(0, "hm"),
        TextDelta(0, "a"),
        TextDelta(0, "b"),
        CallStarted(0, 0, "c0", "weather"),
        CallArguments(0, 0, "{}"),
        CallStarted(0, 1, "c1", "weather"),
        Ended(0, "tool_calls", None, 6, 7),
        DONE,
    ]
    found, _ = streamed(events, tools=[WEATHER])
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert found[10] == {
        "type": "response.output_text.delta",
        "sequence_number": 10,
        "item_id": "msg_7_1",
        "output_index": 1,
        "content_index": 0,
        "delta": "a",
        "logprobs": [],
    }
    assert found[-3]["arguments"] == "{}" and found[-3]["item_id"] == "fc_7_3"
    summed, _ = streamed(events, tools=[WEATHER], reasoning={"summary": "detailed"})
    assert [event["type"].removeprefix("response.") for event in summed[3:7]] == [
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]


def test_logprobs_wait_for_their_text() -> None:
    """A token that is a part of a character has a log-probability before there is text."""
    one, two, three = map(token_logprobs, (1, 2, 3))
    events = [TextDelta(0, "", (one,)), TextDelta(0, "é", (two,)), TextDelta(0, "", (three,))]
    found, kept = streamed([Started(5), *events, Ended(0, "stop", None, 3, 7), DONE], top_logprobs=2)
    assert len(kept[0]["output"][0]["content"][0]["logprobs"]) == 3
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [(event["delta"], len(event["logprobs"])) for event in deltas] == [("é", 2), ("", 1)]


@pytest.mark.parametrize(
    ("kind", "code"), [("internal", "server_error"), ("unavailable", "server_error"), ("invalid", "invalid_prompt")]
)
def test_a_failure_is_the_last_event(kind: Any, code: str) -> None:
    kept: list[Mapping[str, Any]] = []
    encoder = Stream(asked(), CONTEXT, kept.append)
    data = encoder.event(Started(5)) + encoder.event(TextDelta(0, "half"))
    before = len(read(data))
    found = read(data + encoder.error(Problem(kind, "gone")))
    last = found[-1]
    assert last["type"] == "response.failed" and last["sequence_number"] >= before
    assert last["response"]["status"] == "failed" and last["response"]["error"] == {"code": code, "message": "gone"}
    assert last["response"]["output"][0]["content"][0]["text"] == "half" and kept == []
