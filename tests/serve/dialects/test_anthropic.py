"""Anthropic's Messages API: what a body means."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.chat.message import ImageLink, ImagePart, Message, Tool, ToolCall
from herder.core.request import Constraint
from herder.serve.dialect import Call, Problem
from herder.serve.dialects import anthropic
from herder.serve.dialects.anthropic_fields import COUNT_TOKENS, MESSAGES
from herder.serve.fields import FieldError
from herder.serve.wire import ChatRequest, Named
from tests.serve.dialects.bodies import bodies, refusing

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
USER = {"role": "user", "content": "hello"}
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "of a city", "input_schema": SCHEMA}
CACHE = {"type": "ephemeral", "ttl": "1h"}


def parsed(*, dropped: list[str] | None = None, **body: Any) -> ChatRequest:
    return anthropic.parse(Call({"model": "m", "max_tokens": 9, "messages": [USER], **body}, dropped=dropped))


def refusal(**body: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        parsed(**body)
    assert "\n" not in str(caught.value)
    return caught.value


def said(*messages: dict[str, Any], **body: Any) -> list[Message]:
    return list(parsed(messages=list(messages), **body).messages)


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def test_the_least_request() -> None:
    request = parsed()
    assert (request.model, request.n, request.stream) == ("m", 1, False)
    assert request.options == {"max_tokens": 9} and request.messages == (Message("user", "hello"),)
    assert request.tools == () and request.tool_choice == "auto" and request.parallel_tool_calls
    assert request.constraint is None and not request.reasoning and not request.truncate


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens"])
def test_what_must_be_there(name: str) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [USER]}
    del body[name]
    with pytest.raises(FieldError, match=f"^{name} is missing"):
        anthropic.parse(Call(body))


def test_every_option() -> None:
    request = parsed(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, seed=7, stop_sequences=["a", "b"], stream=True, deadline=2,
        truncate_prompt_tokens=-1, metadata={"user_id": "u"}, service_tier="auto", speed="standard",
        cache_control=CACHE,
    )  # fmt: skip
    assert request.options == {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "stop": ("a", "b"),
    }  # fmt: skip
    assert request.stream and request.truncate and request.deadline == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stream": 1}, "stream"),
        ({"service_tier": "batch"}, "service_tier"),
        ({"speed": "fast"}, "speed"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"cache_control": {"type": "forever"}}, "cache_control.type"),
        ({"n": 2}, "n"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [user(text("a", source={}))]}, "messages[0].content[0].source"),
        ({"messages": [user(text("\ud800"))]}, "messages[0].content[0].text"),
        ({"messages": [user({"type": "redacted_thinking", "data": "x"})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "tool_use", "id": "1"})]}, "messages[0].content[0].type"),
        ({"messages": [user(text("x", citations=[{"type": "page_location"}]))]}, "messages[0].content[0].citations"),
        ({"messages": [USER, {"role": "assistant", "content": "The answer is ("}]}, "messages[1]"),
    ],
)  # fmt: skip
def test_refused(body: dict[str, Any], field: str) -> None:
    assert refusal(**body).field == field


def test_images() -> None:
    [message] = said(user(text("what is"), IMAGE | {"cache_control": CACHE}, text("this?")))
    assert message.content == "what isthis?" and message.parts is not None
    assert [part.data if isinstance(part, ImagePart) else part for part in message.parts] == ["what is", PNG, "this?"]
    url = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
    [message] = said(user(url))
    [link] = message.images
    assert isinstance(link, ImageLink) and link.where == "messages[0].content[0].source.url"
    url["source"] = {"type": "url", "url": "https://example.com/x.png", "data": "AAAA"}
    assert refusal(messages=[user(url)]).field == "messages[0].content[0].source.data"
    url["source"] = {"type": "file", "file_id": "x"}
    assert refusal(messages=[user(url)]).field == "messages[0].content[0].source.type"
    broken = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "!"}}
    assert refusal(messages=[user(broken)]).field == "messages[0].content[0].source.data"


def test_documents_are_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Once upon a time."}
    document = {"type": "document", "source": source, "title": "A tale", "citations": {"enabled": False}}
    assert said(user(document, text("Summarize."))) == [Message("user", "A tale\nOnce upon a time.\nSummarize.")]
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}}
    assert "send their text" in str(refusal(messages=[user(pdf)]))


def test_a_conversation_with_tools() -> None:
    assistant = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "A city.", "signature": ""},
            text("I look. "),
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}},
            {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}, "caller": {"type": "direct"}},
        ],
    }
    results = user(
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("no city")], "is_error": True},
        text("And now?"),
    )
    assert said(USER, assistant, results, system=[text("be"), text("brief", cache_control=CACHE)]) == [
        Message("system", "be\nbrief"),
        Message("user", "hello"),
        Message(
            "assistant",
            "I look. ",
            tool_calls=(ToolCall("weather", {"city": "Oslo"}, "toolu_1"), ToolCall("weather", {}, "toolu_2")),
            reasoning="A city.",
        ),
        Message("tool", "rain", tool_call_id="toolu_1"),
        Message("tool", "Error: no city", tool_call_id="toolu_2"),
        Message("user", "And now?"),
    ]


def test_a_result_may_be_an_image() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("seen:"), IMAGE]}
    [message] = said(user(result))
    assert message.role == "tool" and message.images[0].data == PNG


def test_turns_of_one_role_are_one() -> None:
    turns = [
        USER,
        USER,
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
        user(IMAGE),
        USER,
    ]
    first, second, third = said(*turns)
    assert (first.content, second.content) == ("hello\n\nhello", "a\n\nb")
    assert third.parts is not None and third.parts[1:] == ("\n\n", "hello") and len(third.images) == 1
    assert said({"role": "system", "content": "b"}, USER, system="a")[0] == Message("system", "a\n\nb")


def test_tools() -> None:
    tools = [WEATHER | {"type": "custom", "strict": True, "cache_control": CACHE}, {"name": "f", "input_schema": {}}]
    request = parsed(tools=tools, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert request.tools == (Tool("weather", "of a city", SCHEMA, {"strict": True}), Tool("f", None, {}))
    assert request.tool_choice == "auto" and not request.parallel_tool_calls
    assert parsed(tools=tools, tool_choice={"type": "any"}).tool_choice == "required"
    assert parsed(tools=tools, tool_choice={"type": "none"}).tool_choice == "none"
    assert parsed(tools=tools, tool_choice={"type": "tool", "name": "f"}).tool_choice == Named("f")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "auto", "name": "weather"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "tool_choice"),
    ],
)
def test_refused_tools(body: dict[str, Any], field: str) -> None:
    assert refusal(**body).field == field


def test_a_server_tool_is_refused_by_its_name() -> None:
    assert "web_search_20250305" in str(refusal(tools=[{"type": "web_search_20250305", "name": "web_search"}]))


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "display": "summarized"}, True),
        ({"type": "adaptive", "display": "omitted"}, False),
    ],
)
def test_thinking(thinking: dict[str, Any], shown: bool) -> None:
    assert parsed(thinking=thinking).reasoning is shown


def test_schemas() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    expected = Constraint("schema", SCHEMA)
    assert parsed(output_config={"format": form}).constraint == parsed(output_format=form).constraint == expected
    assert parsed(output_config={"format": None, "effort": "high"}).constraint is None
    assert refusal(output_config={"format": form}, output_format=form).field == "output_format"


def test_lenient() -> None:
    dropped: list[str] = []
    tool = WEATHER | {"defer_loading": True}
    request = parsed(dropped=dropped, container="c", n=2, tools=[tool], messages=[user(text("x", title="t"))])
    assert request.messages == (Message("user", "x"),) and len(request.tools) == 1
    assert dropped == ["container", "n", "tools[0].defer_loading", "messages[0].content[0].title"]


def test_counting() -> None:
    body = {"model": "m", "messages": [USER, {"role": "assistant", "content": "hi"}], "tools": [WEATHER]}
    request = anthropic.parse_count(Call(body))
    assert [message.role for message in request.messages] == ["user", "assistant"] and len(request.tools) == 1
    with pytest.raises(FieldError, match="max_tokens is not a field"):
        anthropic.parse_count(Call({**body, "max_tokens": 9}))


def test_errors() -> None:
    status, headers, body = anthropic.error(Problem("rate_limited", "slow down", retry_after=1.2))
    assert (status, headers) == (429, {"retry-after": "2"})
    assert body == {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}


def test_pages_of_models() -> None:
    models = [{"id": str(i)} for i in range(5)]
    first = anthropic.page(models, {"limit": "2"})
    assert first == {"data": models[:2], "has_more": True, "first_id": "0", "last_id": "1"}
    assert anthropic.page(models, {"limit": "2", "after_id": "3"})["data"] == models[4:]
    before = anthropic.page(models, {"limit": "2", "before_id": "4"})
    assert before["data"] == models[2:4] and before["has_more"]
    for query in ({"limit": "0"}, {"limit": "x"}, {"after_id": "9"}):
        with pytest.raises(FieldError):
            anthropic.page(models, query)


WORDS = (
    "user",
    "assistant",
    "text",
    "image",
    "tool_use",
    "tool_result",
    "base64",
    "ephemeral",
    "auto",
    "tool",
    "custom",
)


@given(bodies(MESSAGES, *WORDS, model="m", max_tokens=9, messages=[USER]), st.booleans())
def test_any_body_is_read_or_refused(body: dict[str, Any], lenient: bool) -> None:
    with refusing():
        anthropic.parse(Call(body, dropped=[] if lenient else None))


@given(bodies(COUNT_TOKENS, *WORDS, model="m", messages=[USER]))
def test_any_body_is_counted_or_refused(body: dict[str, Any]) -> None:
    with refusing():
        anthropic.parse_count(Call(body))
