"""Streams of OpenAI's dialects: the chunks, put together by OpenAI's own client, are the whole answer."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from herder.core.request import TokenLogprob
from herder.serve.dialect import Call, Context, Problem
from herder.serve.dialects import openai_chat, openai_completions
from herder.serve.wire import Answer, AnswerEvent, Done, Ended, Started, TextDelta
from tests.serve.dialects.events import streams, whole

CONTEXT = Context("7", 1700000000, "m", {}, lambda token: bytes([token]), "fp_1")
TOOL = {"type": "function", "function": {"name": "weather"}}


def chunks(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream, whose last one says that it is over."""
    assert data.endswith(b"\n\n")
    lines = data.decode().removesuffix("\n\n").split("\n\n")
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def chat(events: list[AnswerEvent], **body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole answer, and the chunks of the stream."""
    said = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, **body}
    request = openai_chat.parse(Call(said))
    encoder = openai_chat.stream(request, CONTEXT)
    data = b"".join([encoder.event(event) for event in events])
    return openai_chat.answer(request, whole(events, request.n), CONTEXT), chunks(data)


@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans())
def test_chat_chunks_join_to_the_answer(data: st.DataObject, n: int, usage: bool, logprobs: bool) -> None:
    body: dict[str, Any] = {"n": n, "tools": [TOOL]} | ({"logprobs": True, "top_logprobs": 2} if logprobs else {})
    if usage:
        body["stream_options"] = {"include_usage": True}
    events = data.draw(streams(n, reasoning=False, logprobs=logprobs))
    expected, found = chat(events, **body)
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in found:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk, strict=True))
    joined = state.current_completion_snapshot.to_dict()
    assert joined["id"] == expected["id"] and joined["object"] == "chat.completion"
    assert joined["system_fingerprint"] == "fp_1"
    for ours, theirs in zip(expected["choices"], joined["choices"], strict=True):  # type: ignore[call-overload]
        assert theirs["finish_reason"] == ours["finish_reason"]
        assert theirs["message"].get("content") == ours["message"]["content"]
        calls = [
            {**call, "function": {k: v for k, v in call["function"].items() if k != "parsed_arguments"}}
            for call in theirs["message"].get("tool_calls") or []
        ]
        for call in calls:
            call.pop("index", None)
            call["function"]["arguments"] = call["function"]["arguments"] or "{}"
        assert calls == ours["message"].get("tool_calls", [])
        if logprobs and ours["logprobs"]["content"]:
            assert theirs["logprobs"]["content"] == ours["logprobs"]["content"]
    if usage:
        assert joined["usage"] == expected["usage"]
        assert all(chunk["usage"] is None for chunk in found[:-1]) and found[-1]["choices"] == []
    else:
        assert not any("usage" in chunk for chunk in found)


@given(st.data(), st.integers(1, 3))
def test_chat_reasoning_joins(data: st.DataObject, n: int) -> None:
    expected, found = chat(data.draw(streams(n)), n=n, tools=[TOOL])
    for i, choice in enumerate(expected["choices"]):
        deltas = [one["delta"] for chunk in found for one in chunk["choices"] if one["index"] == i]
        joined = "".join([delta.get("reasoning_content", "") for delta in deltas])
        assert joined == choice["message"].get("reasoning_content", "")
        assert deltas[0]["role"] == "assistant" and not any("role" in delta for delta in deltas[1:])


@given(st.data(), st.integers(1, 3), st.booleans())
def test_completion_chunks_join_to_the_answer(data: st.DataObject, n: int, logprobs: bool) -> None:
    events = data.draw(streams(n, calls=False, reasoning=False, logprobs=logprobs))
    body = {"model": "m", "prompt": "x", "stream": True, "n": n, "stream_options": {"include_usage": True}}
    request = openai_completions.parse(Call(body | ({"logprobs": 1} if logprobs else {})))
    encoder = openai_completions.stream(request, CONTEXT)
    found = chunks(b"".join([encoder.event(event) for event in events]))
    expected = openai_completions.answer(request, whole(events, n), CONTEXT)
    Completion.model_validate(expected, strict=True)
    assert found[-1]["usage"] == expected["usage"]
    for i, choice in enumerate(expected["choices"]):
        mine = [one for chunk in found for one in chunk["choices"] if one["index"] == i]
        assert "".join([one["text"] for one in mine]) == choice["text"]
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
        spelled = [one["logprobs"] for one in mine if one["logprobs"]]
        for key in ("tokens", "token_logprobs", "top_logprobs"):
            joined = [value for one in spelled for value in one[key]]
            assert joined == (choice["logprobs"][key] if logprobs else [])


def test_chat_stream_as_bytes() -> None:
    _, found = chat([Started(3), TextDelta(0, "h\u00e9\n"), Ended(0, "stop", None, 2, 7), Done(3, 2, 0, 0, 0, 0, 0)])
    head = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1700000000, "model": "m"}
    head["system_fingerprint"] = "fp_1"

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    first = {"role": "assistant", "content": "", "refusal": None}
    assert found == [chunk(first), chunk({"content": "h\u00e9\n"}), chunk({}, "stop")]


def test_cut_prompts_are_reported_once_a_choice() -> None:
    _, found = chat(
        [Started(3, truncated=9), Ended(0, "stop", None, 0, 7), Done(3, 0, 0, 0, 0, 0, 0)], truncate_prompt_tokens=-1
    )
    assert [chunk.get("truncated_prompt_tokens") for chunk in found] == [9, None]


def test_errors_that_come_late() -> None:
    said = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    encoder = openai_chat.stream(openai_chat.parse(Call(said)), CONTEXT)
    data = encoder.error(Problem("internal", "internal error"))
    error = {"message": "internal error", "type": "server_error", "param": None, "code": None}
    assert json.loads(data.decode().removeprefix("data: ")) == {"error": error}


# Log-probabilities of plain completions ------------------------------------------------------------------------------
def offsets(text: str, tokens: list[bytes], first: float = -1.0) -> dict[str, Any]:
    request = openai_completions.parse(Call({"model": "m", "prompt": "x", "logprobs": 0}))
    found = [TokenLogprob(i, first if i == 0 else -1.0) for i in range(len(tokens))]
    answer: Answer = whole([Started(1), TextDelta(0, text, tuple(found)), Done(1, 1, 0, 0, 0, 0, 0)], 1)
    context = Context("7", 0, "m", {}, tokens.__getitem__)
    logprobs: dict[str, Any] = openai_completions.answer(request, answer, context)["choices"][0]["logprobs"]
    return logprobs


def test_text_offsets() -> None:
    assert offsets("ab cd", [b"ab", b" c", b"d"])["text_offset"] == [0, 2, 4]


def test_text_offsets_of_an_echo_with_bos() -> None:
    found = offsets("Hello you", [b"<s>", b" Hello", b" you"], first=float("nan"))
    assert found["text_offset"] == [0, 0, 5]
    assert found["token_logprobs"] == [None, -1.0, -1.0] and found["top_logprobs"][0] is None


def test_tokens_that_are_part_of_a_character() -> None:
    found = offsets("a\u20acb", [b"a", b"\xe2\x82", b"\xac", b"b"])
    assert found["tokens"] == ["a", "bytes:\\xe2\\x82", "bytes:\\xac", "b"]
    assert found["text_offset"] == [0, 1, 1, 2]
    assert found["top_logprobs"][1] == {"bytes:\\xe2\\x82": -1.0}
