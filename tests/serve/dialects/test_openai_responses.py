"""Requests to OpenAI's responses: what a body means, what is refused, and that nothing is worse than refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from openai.types.responses import (
    input_item_list_params,
    input_token_count_params,
    response_create_params,
    response_retrieve_params,
)

from herder.chat.message import ImagePart, Message, ToolCall
from herder.serve.dialect import Call
from herder.serve.dialects.openai_responses_fields import COUNT, INPUT_ITEMS, RETRIEVE, TABLE
from herder.serve.dialects.openai_responses_request import Asked, parse
from herder.serve.fields import FieldError
from herder.serve.wire import ChatRequest, Constraint, Named
from tests.serve.dialects.bodies import bodies
from tests.serve.dialects.sdk_fields import assert_complete

WEATHER = {"type": "function", "name": "weather", "description": "of a city", "parameters": {"type": "object"}}
TIME = {"type": "function", "name": "time", "parameters": None, "strict": True}
PIXEL = base64.b64encode(b"\x89PNG and so on").decode()
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Ulm"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}


def asked(*, dropped: list[str] | None = None, **body: Any) -> Asked:
    return parse(Call({"model": "m", "input": "hello", **body}, dropped=dropped))


def requested(**body: Any) -> ChatRequest:
    found = asked(**body)
    return found.request((), found.items)


def messages(*items: dict[str, Any], **body: Any) -> tuple[Message, ...]:
    return requested(input=list(items), **body).messages


def test_the_tables_have_every_field_of_the_client() -> None:
    assert_complete(
        TABLE,
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
        whole=("input[].content[].annotations", "input[].content[].logprobs"),
    )
    assert_complete(
        RETRIEVE,
        response_retrieve_params.ResponseRetrieveParamsNonStreaming,
        response_retrieve_params.ResponseRetrieveParamsStreaming,
    )
    assert_complete(INPUT_ITEMS, input_item_list_params.InputItemListParams)
    assert_complete(
        COUNT,
        input_token_count_params.InputTokenCountParams,
        whole=("input[].content[].annotations", "input[].content[].logprobs"),
    )


# Requests ------------------------------------------------------------------------------------------------------------
def test_the_least_request() -> None:
    found = asked()
    assert (found.store, found.previous, found.summary, found.logprobs) == (True, None, False, False)
    request = found.request((), found.items)
    assert request.messages == (Message("user", "hello"),)
    assert (request.model, request.n, request.stream, request.truncate) == ("m", 1, False, False)
    assert request.options == {} and request.tools == () and request.tool_choice == "auto"
    assert request.constraint is None and request.parallel_tool_calls


def test_every_option() -> None:
    request = requested(
        instructions="Be brief.", temperature=0.5, top_p=0.9, max_output_tokens=9, top_logprobs=3, stream=True,
        stream_options={"include_obfuscation": False}, truncation="auto", parallel_tool_calls=False, seed=-1,
        stop=["a"], top_k=40, min_p=0.05, frequency_penalty=0.1, presence_penalty=0.2, repetition_penalty=1.1,
        logit_bias={"5": 1}, deadline=2.5, chat_template_kwargs={"date": "today"}, max_tool_calls=3,
        service_tier="auto", user="u", safety_identifier="s", prompt_cache_key="k", metadata={"a": "b"},
        reasoning={"effort": "medium", "context": "auto"}, text={"verbosity": "medium"}, background=False,
        include=["message.output_text.logprobs"], prompt_cache_options={"mode": "implicit"}, conversation=None,
    )  # fmt: skip
    assert request.messages == (Message("system", "Be brief."), Message("user", "hello"))
    assert request.options == {
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "logprobs": 3, "seed": 2**64 - 1, "stop": ("a",),
        "top_k": 40, "min_p": 0.05, "frequency_penalty": 0.1, "presence_penalty": 0.2, "repetition_penalty": 1.1,
        "logit_bias": {5: 1.0},
    }  # fmt: skip
    assert request.stream and request.truncate and not request.parallel_tool_calls and request.deadline == 2.5
    assert request.format_options == {"date": "today"}
    assert requested(include=["message.output_text.logprobs"]).options == {"logprobs": 0}


def test_items_become_messages() -> None:
    found = messages(
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": [{"type": "input_text", "text": "How is "}, {"type": "input_text", "text": "it?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hmm"}]},
        {
            "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "Let me ", "annotations": [], "logprobs": []},
                        {"type": "refusal", "refusal": "see."}],
        },
        CALL,
        {**CALL, "call_id": "c2", "arguments": "", "id": "fc_2"},
        {**CALL, "call_id": "cut", "arguments": '{"ci', "status": "incomplete"},
        {**OUTPUT, "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        OUTPUT,
        {"role": "assistant", "content": "Rain and sun."},
        {"role": "assistant", "content": "Mostly."},
        {"role": "user", "content": "Thanks"},
    )  # fmt: skip
    assert found == (
        Message("system", "Rules."),
        Message("user", "How is it?"),
        Message(
            "assistant",
            "Let me see.",
            (ToolCall("weather", {"city": "Ulm"}, "c1"), ToolCall("weather", {}, "c2")),
            reasoning="hmm",
        ),
        Message("tool", "sun", tool_call_id="c2", name="weather"),
        Message("tool", "rain", tool_call_id="c1", name="weather"),
        Message("assistant", "Rain and sun."),
        Message("assistant", "Mostly."),
        Message("user", "Thanks"),
    )


def test_thoughts_belong_to_what_follows_them() -> None:
    def thought(text: str, **more: Any) -> dict[str, Any]:
        return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}], **more}

    def said(text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": text}

    whole = [{"type": "reasoning_text", "text": "b"}, {"type": "reasoning_text", "text": "c"}]
    found = messages(
        {"role": "user", "content": "Go"}, thought("a"), said("one"), thought("-", content=whole), said("two"),
        thought("d"), CALL, thought("e"), {**CALL, "call_id": "c2"}, thought("lost"), OUTPUT,
        {**OUTPUT, "call_id": "c2"}, thought("lost"), {"role": "user", "content": "Go on"}, thought("lost"),
    )  # fmt: skip
    assert [(m.role, m.text, m.reasoning) for m in found] == [
        ("user", "Go", None),
        ("assistant", "one", "a"),
        ("assistant", "two", "b\nc\nd\ne"),
        ("tool", "rain", None),
        ("tool", "rain", None),
        ("user", "Go on", None),
    ]
    assert len(found[2].tool_calls) == 2


def test_images() -> None:
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"}
    [message] = messages({"role": "user", "content": [{"type": "input_text", "text": "What?"}, image]})
    assert message.parts is not None and message.parts[0] == "What?"
    assert isinstance(message.parts[1], ImagePart) and message.parts[1].data.startswith(b"\x89PNG")


def test_history_stands_before_the_input_and_after_the_instructions() -> None:
    before: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {**CALL, "status": "completed"},
    ]
    found = asked(input=[OUTPUT], instructions="Now.", previous_response_id="resp_1")
    assert found.previous == "resp_1"
    assert [m.role for m in found.request(before, found.items).messages] == ["system", "user", "assistant", "tool"]


def test_tools_and_choices() -> None:
    request = requested(tools=[WEATHER, TIME], tool_choice={"type": "function", "name": "time"})
    assert [tool.name for tool in request.tools] == ["weather", "time"] and request.tool_choice == Named("time")
    assert request.tools[0].parameters == {"type": "object"} and request.tools[1].parameters is None
    only = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}
    request = requested(tools=[WEATHER, TIME], tool_choice=only)
    assert [tool.name for tool in request.tools] == ["time"] and request.tool_choice == "required"
    assert requested(tools=[WEATHER], tool_choice="none").tool_choice == "none"


@pytest.mark.parametrize(
    ("form", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json")),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "array"}, "strict": True},
            Constraint("schema", {"type": "array"}),
        ),
    ],
)
def test_formats(form: dict[str, Any], constraint: Constraint | None) -> None:
    assert requested(text={"format": form}).constraint == constraint
    assert requested(structured_outputs={"regex": "a+"}).constraint == Constraint("regex", "a+")


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "model", "is missing"),
    ({"input": None}, "input", "is missing"),
    ({"input": []}, "input", "nothing to answer"),
    ({"input": 5}, "input", "expected a list"),
    ({"messages": []}, "messages", "that is spelled input here"),
    ({"max_tokens": 5}, "max_tokens", "that is spelled max_output_tokens here"),
    ({"nonsense": 1}, "nonsense", "is not a field of this API"),
    ({"background": True}, "background", "while the client waits"),
    ({"conversation": "c"}, "conversation", "use previous_response_id"),
    ({"prompt": {"id": "p"}}, "prompt", "no prompt templates"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]", "reasoning.encrypted_content"),
    ({"include": ["file_search_call.results"]}, "include[0]", "file_search_call.results"),
    ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"top_logprobs": 21}, "top_logprobs", "at most 20"),
    ({"temperature": -1}, "temperature", "temperature"),
    ({"truncation": "maybe"}, "truncation", "expected auto or disabled"),
    ({"service_tier": "flex"}, "service_tier", "flex"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream is not true"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "padded"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", "no levels"),
    ({"reasoning": {"summary": "concise"}}, "reasoning.summary", "concise"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "instructions"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "expected text or json_object"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "expected an object"),
    ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema", "does not go with text"),
    ({"metadata": {"a": 1}}, "metadata.a", "expected text"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", '"web_search"'),
    ({"tools": [WEATHER, {"type": "file_search", "vector_store_ids": []}]}, "tools[1].type", '"file_search"'),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type", '"mcp"'),
    ({"tools": [{"type": "code_interpreter", "container": "x"}]}, "tools[0].type", '"code_interpreter"'),
    ({"tools": [{"type": "computer"}]}, "tools[0].type", '"computer"'),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "another tool"),
    ({"tools": [{"type": "function"}]}, "tools[0]", "lacks name"),
    ({"tools": [{**WEATHER, "parameters": 5}]}, "tools[0].parameters", "expected a JSON schema"),
    ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading", "sees all tools"),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "not among"),
    ({"tools": [WEATHER], "tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice.type", '"mcp"'),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", '"web_search"'),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", '"web_search_call"'),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", '"tool"'),
    ({"input": [{"role": "user", "content": "x", "phase": "commentary"}]}, "input[0].phase", "no chat format"),
    ({"input": [{"role": "user", "content": "x", "arguments": "{}"}]}, "input[0].arguments", "no field of a message"),
    ({"input": [{"role": "user"}]}, "input[0].content", "lacks content"),
    ({"input": [{}]}, "input[0]", "neither type, role nor id"),
    ({"input": [CALL]}, "input", "has no function_call_output"),
    ({"input": [OUTPUT]}, "input[0].call_id", "no function_call before it"),
    ({"input": [{**CALL, "arguments": "{"}, OUTPUT]}, "input[0].arguments", "not of JSON"),
    ({"input": [{**CALL, "arguments": "[]"}, OUTPUT]}, "input[0].arguments", "expected an object"),
    (
        {"input": [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}]},
        "input[0].encrypted_content",
        "in the open",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://a/b.png"}]}]},
        "input[0].content",
        "URL to fetch",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        "input[0].content[0].type",
        "input_file",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
        "input[0].content[0].type",
        "output_text",
    ),
]


@pytest.mark.parametrize(("body", "field", "words"), REFUSALS)
def test_refusals_name_the_field(body: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(FieldError) as caught:
        requested(**body)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.field is not None and caught.value.field.startswith(field)


def test_a_lenient_server_says_what_it_dropped() -> None:
    dropped: list[str] = []
    found = asked(dropped=dropped, background=True, nonsense=1, reasoning={"effort": "high"})
    assert dropped == ["background", "nonsense", "reasoning.effort"]
    assert found.echo["background"] is False and found.echo["reasoning"]["effort"] is None


KINDS = (
    "message",
    "user",
    "assistant",
    "function_call",
    "function_call_output",
    "input_text",
    "output_text",
    "function",
)


@given(bodies(TABLE, *KINDS, model="m", input="x"))
def test_no_body_is_worse_than_refused(body: dict[str, Any]) -> None:
    try:
        found = parse(Call(body))
        request = found.request((), [item for item in found.items if item["type"] != "item_reference"])
    except FieldError as error:
        assert "\n" not in str(error) and error.field
        return
    assert request.messages
    json.dumps(found.echo)
