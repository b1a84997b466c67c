"""OpenAI's chat completions: what a body means, and what an answer looks like."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from herder.chat.message import ImagePart, ToolCall
from herder.core.request import TokenLogprob
from herder.serve.dialect import Call, Context
from herder.serve.dialects.openai_chat import answer, parse
from herder.serve.fields import FieldError
from herder.serve.wire import Answer, ChatRequest, Choice, Constraint, Done, Named, Started
from herder.serve.wire import Call as AnsweredCall

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
USER = {"role": "user", "content": "hello"}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object", "properties": {}}},
}
TIME = {"type": "function", "function": {"name": "time", "strict": True}}
DONE = Done(11, 5, 4, 2, 0.1, 0.2, 0.3)


def parsed(*, dropped: list[str] | None = None, **body: Any) -> ChatRequest:
    return parse(Call({"model": "m", "messages": [USER], **body}, dropped=dropped))


def refusal(**body: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        parsed(**body)
    assert "\n" not in str(caught.value)
    return caught.value


# Requests ------------------------------------------------------------------------------------------------------------
def test_the_least_request() -> None:
    request = parsed()
    assert (request.model, request.n, request.stream, request.stream_usage) == ("m", 1, False, False)
    assert request.options == {} and request.tools == () and request.tool_choice == "auto"
    assert request.constraint is None and request.parallel_tool_calls and request.reasoning and not request.truncate


def test_every_option() -> None:
    request = parsed(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, presence_penalty=0.1,
        frequency_penalty=-0.2, logit_bias={"5": -100, "7": 1.5}, seed=42, logprobs=True, top_logprobs=3,
        max_completion_tokens=9, stop=["a", "b"], stop_token_ids=[2], ignore_eos=True, n=2, stream=True,
        stream_options={"include_usage": True}, parallel_tool_calls=False, include_reasoning=False,
        chat_template_kwargs={"date": "26 Jul 2024"}, truncate_prompt_tokens=-1, deadline=2.5,
    )  # fmt: skip
    assert request.options == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
        "presence_penalty": 0.1, "frequency_penalty": -0.2, "logit_bias": {5: -100.0, 7: 1.5}, "seed": 42,
        "logprobs": 3, "max_tokens": 9, "stop": ("a", "b"), "stop_tokens": (2,), "ignore_eos": True,
    }  # fmt: skip
    assert request.n == 2 and request.stream and request.stream_usage
    assert not request.parallel_tool_calls and not request.reasoning
    assert request.format_options == {"date": "26 Jul 2024"} and request.truncate and request.deadline == 2.5


def test_null_says_nothing() -> None:
    names = (
        "temperature",
        "stop",
        "seed",
        "tools",
        "tool_choice",
        "response_format",
        "n",
        "stream",
        "logprobs",
        "store",
    )
    assert parsed(**dict.fromkeys(names)) == parsed()


def test_values_that_ask_for_nothing() -> None:
    asks_nothing = {
        "store": False, "service_tier": "auto", "modalities": ["text"], "verbosity": "medium", "user": "u",
        "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k",
        "prompt_cache_retention": "in_memory", "functions": [], "function_call": "none",
        "prompt_cache_options": {"mode": "implicit"},
        "response_format": {"type": "text"}, "logprobs": False, "top_logprobs": 0,
    }  # fmt: skip
    assert parsed(**asks_nothing) == parsed()


def test_signed_seeds() -> None:
    assert parsed(seed=-1).options == {"seed": 2**64 - 1}


def test_maximum_by_both_names() -> None:
    assert parsed(max_tokens=5).options == parsed(max_completion_tokens=5, max_tokens=5).options == {"max_tokens": 5}
    assert refusal(max_tokens=5, max_completion_tokens=6).field == "max_tokens"


def test_messages() -> None:
    call = {
        "id": "c1",
        "type": "function",
        "index": 0,
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    request = parsed(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call],
                "refusal": None,
                "annotations": [],
                "audio": None,
            },
            {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"},
            {"role": "assistant", "refusal": "no"},
            {"role": "assistant", "content": "so", "reasoning_content": "hm"},
        ]
    )
    roles = [message.role for message in request.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "assistant"]
    assert request.messages[1].content == "hello" and request.messages[1].parts is None
    assert request.messages[2].tool_calls == (ToolCall("weather", {"city": "Oslo"}, "c1"),)
    assert request.messages[2].content is None
    assert (request.messages[3].tool_call_id, request.messages[3].text) == ("c1", "rain")
    assert request.messages[4].content == "no" and request.messages[5].reasoning == "hm"


def test_images() -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url, "detail": "high"}}]
    [message] = parsed(messages=[{"role": "user", "content": parts}]).messages
    assert message.parts is not None
    text, image = message.parts
    assert text == "what?" and isinstance(image, ImagePart) and image.data == PNG


def test_tools() -> None:
    request = parsed(tools=[WEATHER, TIME], tool_choice="required")
    assert [tool.name for tool in request.tools] == ["weather", "time"]
    assert request.tools[0].description == "of a city" and request.tools[1].extra == {"strict": True}
    assert request.tool_choice == "required"
    named = {"type": "function", "function": {"name": "time"}}
    assert parsed(tools=[WEATHER, TIME], tool_choice=named).tool_choice == Named("time")
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    request = parsed(tools=[WEATHER, TIME], tool_choice=allowed)
    assert [tool.name for tool in request.tools] == ["time"] and request.tool_choice == "required"


@pytest.mark.parametrize(
    ("body", "constraint"),
    [
        ({"response_format": {"type": "json_object"}}, Constraint("json")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": {"a": 1}},
                }
            },
            Constraint("schema", {"a": 1}),
        ),
        ({"structured_outputs": {"json": '{"a": 1}'}}, Constraint("schema", {"a": 1})),
        ({"structured_outputs": {"json": {"a": 1}, "regex": None}}, Constraint("schema", {"a": 1})),
        ({"structured_outputs": {"json_object": True}}, Constraint("json")),
        ({"structured_outputs": {"regex": "a+"}}, Constraint("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint("choice", ("a", "b"))),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Constraint("lark", 'start: "a"')),
    ],
)
def test_constraints(body: dict[str, Any], constraint: Constraint) -> None:
    assert parsed(**body).constraint == constraint


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "name": "ann"}]}, "messages[0].name"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x/y"}}]}]},
            "messages[0].content[0].image_url",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TIME, TIME]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": "any"}, "tool_choice"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"guided_json": {}}, "guided_json"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"truncate_prompt_tokens": 100}, "truncate_prompt_tokens"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"model": 5}, "model"),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], field: str) -> None:
    assert refusal(**body).field == field


def test_refused_fields_name_the_way_out() -> None:
    assert "structured_outputs.regex" in str(refusal(guided_regex="a"))
    assert "use tools" in str(refusal(functions=[{"name": "f"}]))


def test_a_lenient_server_drops_what_it_would_refuse() -> None:
    dropped: list[str] = []
    request = parsed(dropped=dropped, frobnicate=1, store=True, messages=[USER | {"name": "ann", "mood": "good"}])
    assert request == parsed()
    assert dropped == ["frobnicate", "store", "messages[0].mood", "messages[0].name"]


# Answers -------------------------------------------------------------------------------------------------------------
def context(**body: Any) -> Context:
    return Context("7", 1700000000, "m", body, lambda token: bytes([token]), "fp_1")


def test_an_answer() -> None:
    call = AnsweredCall("call_1", "weather", '{"city":"Oslo"}')
    found = Answer(
        [
            Choice(
                "hi", logprobs=[TokenLogprob(104, -0.5, ((104, -0.5), (195, float("-inf")))), TokenLogprob(105, -1.0)]
            ),
            Choice(reasoning="hm", calls=[call], reason="tool_calls"),
            Choice(reason="length"),
        ],
        Started(11, 4, truncated=3),
        DONE,
    )
    request = parsed(logprobs=True, top_logprobs=2, n=3, truncate_prompt_tokens=-1)
    body = answer(request, found, context(metadata={"a": "b"}, service_tier="auto"))
    ChatCompletion.model_validate(body, strict=True)
    assert json.loads(json.dumps(body, allow_nan=False)) == {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "metadata": {"a": "b"},
        "truncated_prompt_tokens": 3,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None},
                "finish_reason": "stop",
                "logprobs": {
                    "content": [
                        {
                            "token": "h",
                            "logprob": -0.5,
                            "bytes": [104],
                            "top_logprobs": [
                                {"token": "h", "logprob": -0.5, "bytes": [104]},
                                {"token": "\ufffd", "logprob": -9999.0, "bytes": [195]},
                            ],
                        },
                        {"token": "i", "logprob": -1.0, "bytes": [105], "top_logprobs": []},
                    ],
                    "refusal": None,
                },
            },
            {
                "index": 1,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "reasoning_content": "hm",
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                        }
                    ],
                },
                "finish_reason": "tool_calls",
                "logprobs": {"content": [], "refusal": None},
            },
            {
                "index": 2,
                "message": {"role": "assistant", "content": "", "refusal": None},
                "finish_reason": "length",
                "logprobs": {"content": [], "refusal": None},
            },
        ],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


def test_an_answer_can_be_sent_back() -> None:
    """A program appends the message it got to its conversation, as it came."""
    call = AnsweredCall("call_1", "weather", "{}")
    body = answer(parsed(), Answer([Choice("hi", calls=[call])], Started(1), DONE), context())
    message = ChatCompletion.model_validate(body).choices[0].message
    for sent in (message.model_dump(), message.model_dump(exclude_unset=True), body["choices"][0]["message"]):
        again = parsed(messages=[USER, sent, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]).messages[1]
        assert (again.content, again.tool_calls) == ("hi", (ToolCall("weather", {}, "call_1"),))
