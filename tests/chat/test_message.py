"""Messages and tools from JSON: what is understood, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.chat.message import Message, Tool, ToolCall, read_message, read_messages, read_tool, read_tools
from herder.core.errors import UsageError

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, None]}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def test_a_string_is_one_users_message() -> None:
    assert read_messages("hello") == [Message("user", "hello")]


def test_messages_of_every_role() -> None:
    given = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "c1", "name": "f"},
        {"role": "ipython", "content": "r"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
    ]
    messages = read_messages(given)
    assert messages[2] == Message("assistant", None, (ToolCall("f", {"a": [1, None]}, "c1"),))
    assert [message.as_json() for message in messages] == given
    assert read_messages(messages) == messages


def test_content_in_parts_keeps_its_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = read_message({"role": "user", "content": parts})
    assert (message.content, message.text, message.parts) == ("ab", "ab", ("a", "b"))
    assert message.as_json()["content"] == parts


def test_arguments_may_be_a_string_of_json() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    message = read_message({"role": "assistant", "content": "", "tool_calls": [call]})
    assert message.tool_calls == (ToolCall("f", {"a": 1}),)


def test_tools() -> None:
    tool = read_tool({**TOOL, "function": {**TOOL["function"], "strict": True}})  # type: ignore[dict-item]
    assert tool == Tool("f", "d", {"type": "object"}, {"strict": True})
    assert read_tools([TOOL])[0].as_json() == TOOL
    assert read_tools(None) == []
    assert read_tool({"function": {"name": "f"}}).as_json() == {"type": "function", "function": {"name": "f"}}


def user(**changes: Any) -> dict[str, Any]:
    return {"role": "user", "content": "u"} | changes


def calling(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [CALL | changes]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "messages is empty"),
        (None, "messages is null: expected a list"),
        (user(), "messages is an object: expected a list"),
        (3, "messages is int 3: expected a list"),
        (["u"], "messages[0] is text: expected an object"),
        ([user(), {"content": "u"}], "messages[1] lacks role"),
        ([user(role="developer")], "messages[0].role is 'developer': expected one of system, user"),
        ([user(role=["user"])], "messages[0].role is ['user']"),
        ([user(temperature=1)], "messages[0] has 'temperature', which is not known: known are role, content"),
        ([user(content=None)], "messages[0].content is missing: expected text"),
        ([user(content=3)], "messages[0].content is int 3: expected text or a list of parts"),
        ([user(content=[{"type": "video"}])], "messages[0].content[0] is a part of type 'video': expected text, image"),
        ([user(content=["a"])], "messages[0].content[0] is a part of type None: expected text, image or image_url"),
        ([user(reasoning_content="r")], "messages[0] has reasoning_content, but its role is user"),
        ([user(content=[{"type": "text", "text": "a", "x": 1}])], "messages[0].content[0] has 'x'"),
        ([user(content="a\ud800")], "messages[0].content holds a lone surrogate (U+D800)"),
        ([user(name=3)], "messages[0].name is int 3: expected text"),
        ([user(tool_calls=[CALL])], "messages[0] has tool_calls, but its role is user"),
        ([user(tool_call_id="c")], "messages[0] has tool_call_id, but its role is user"),
        ([calling() | {"tool_calls": CALL}], "messages[0].tool_calls is an object: expected a list"),
        ([calling(type="code")], "messages[0].tool_calls[0].type is 'code'"),
        ([calling(index=0)], "messages[0].tool_calls[0] has 'index', which is not known"),
        ([calling(function={"arguments": {}})], "messages[0].tool_calls[0].function lacks name"),
        ([calling(function={"name": ""})], "messages[0].tool_calls[0].function.name is empty"),
        ([calling(function={"name": "f", "arguments": "{"})], "function.arguments is a string, but not of JSON"),
        ([calling(function={"name": "f", "arguments": "3"})], "function.arguments is int 3: expected an object"),
        (
            [calling(function={"name": "f", "arguments": {"a": "\udfff"}})],
            "function.arguments.a holds a lone surrogate",
        ),
        ([calling(function={"name": "f", "arguments": {"a": {1}}})], "function.arguments.a is set {1}: expected JSON"),
        ([calling(function={"name": "f", "arguments": {1: 1}})], "a key of messages[0].tool_calls[0]"),
    ],
)
def test_refusals(value: Any, message: str) -> None:
    with pytest.raises(UsageError) as found:
        read_messages(value)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (TOOL, "tools is an object: expected a list"),
        ([{**TOOL, "type": "retrieval"}], "tools[0].type is 'retrieval': only functions"),
        ([{"function": {}}], "tools[0].function lacks name"),
        ([{"function": {"name": "f", "x": 1}}], "tools[0].function has 'x'"),
        ([{"function": {"name": "f", "parameters": []}}], "parameters is a list: expected a JSON schema"),
        ([{"name": "f"}], "tools[0] has 'name', which is not known: known are type, function"),
    ],
)
def test_tool_refusals(value: Any, message: str) -> None:
    with pytest.raises(UsageError) as found:
        read_tools(value)
    assert message in str(found.value)


def test_depth_is_bounded() -> None:
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(UsageError, match="nested more than 64 deep"):
        read_tools([{"function": {"name": "f", "parameters": {"a": deep}}}])


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "function", "name", "arguments", "type", "id", "text", "x"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(value=anything)
def test_any_value_is_messages_or_one_line_of_error(value: Any) -> None:
    for read in (read_messages, read_tools):
        try:
            read(value)
        except UsageError as error:
            assert "\n" not in str(error)
