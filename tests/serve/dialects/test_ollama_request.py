"""Ollama's requests: what a body means, what is refused, and that no body whatever does worse."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.chat.message import ImagePart, Message, ToolCall
from herder.serve.dialect import Call
from herder.serve.dialects import ollama_fields, ollama_request
from herder.serve.dialects.ollama_models import parse_show
from herder.serve.dialects.ollama_names import spellings
from herder.serve.dialects.ollama_options import keep_alive
from herder.serve.dialects.ollama_request import Asked, AskedVectors
from herder.serve.fields import FieldError, Table
from herder.serve.wire import ChatRequest, Constraint, TextRequest
from tests.serve.dialects.bodies import bodies, refusing

USER = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}
PICTURE = base64.b64encode(b"picture").decode()


def chat(*, dropped: list[str] | None = None, **body: Any) -> Asked:
    return ollama_request.chat(Call({"model": "m", "messages": [USER], **body}, dropped=dropped))


def wanted(**body: Any) -> ChatRequest:
    found = chat(**body).wanted
    assert isinstance(found, ChatRequest)
    return found


def generate(**body: Any) -> Asked:
    return ollama_request.generate(Call({"model": "m", **body}))


def refusal(**body: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        chat(**body)
    assert "\n" not in str(caught.value)
    return caught.value


# Chat ----------------------------------------------------------------------------------------------------------------
def test_the_least_chat() -> None:
    asked = chat()
    assert asked == Asked(model="m", wanted=ChatRequest("m", messages=(Message("user", "hello"),), stream=True))


def test_every_option() -> None:
    asked = chat(
        stream=False, keep_alive="1m", think=False, truncate=True, shift=False, format=SCHEMA, logprobs=True,
        top_logprobs=3,
        options={
            "num_ctx": 2048, "num_predict": 9, "seed": 42, "stop": ["a", "b"], "temperature": 0.5, "top_k": -1,
            "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": -0.2,
            "repeat_last_n": -1, "mirostat": 0, "num_gpu": -1, "numa": False, "tfs_z": 1.0, "num_thread": None,
        },
    )  # fmt: skip
    assert (asked.keep, asked.context, asked.think) == (60.0, 2048, False)
    request = asked.wanted
    assert isinstance(request, ChatRequest)
    assert request.options == {
        "max_tokens": 9, "seed": 42, "stop": ("a", "b"), "temperature": 0.5, "top_k": 0, "top_p": 0.9, "min_p": 0.05,
        "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": -0.2, "logprobs": 3,
    }  # fmt: skip
    assert request.constraint == Constraint("schema", SCHEMA)
    assert request.truncate and not request.stream and not request.reasoning


def test_what_says_nothing() -> None:
    plain = chat()
    names = [field.name for field in ollama_fields.CHAT.fields if "." not in field.name and "[" not in field.name]
    said = [name for name in names if name not in ("model", "messages")]
    assert chat(**dict.fromkeys(said)) == plain
    options = {
        name.name.partition(".")[2]: None for name in ollama_fields.CHAT.fields if name.name.startswith("options.")
    }
    assert chat(options=options) == plain
    assert chat(options={"num_predict": -1, "seed": -1}, format="", tools=[]) == plain


def test_formats() -> None:
    assert wanted(format="json").constraint == Constraint("json")
    assert refusal(format="yaml").field == "format"
    assert refusal(format=["json"]).field == "format"


def test_tools_and_their_results() -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA}}
    request = wanted(
        tools=[tool],
        messages=[
            USER,
            {
                "role": "assistant",
                "thinking": "where?",
                "tool_calls": [
                    {"function": {"name": "weather", "arguments": {"city": "Oslo"}}},
                    {"function": {"name": "time", "arguments": {}, "index": 1}, "id": "given"},
                    {"function": {"name": "weather", "arguments": {"city": "Bern"}}},
                ],
            },
            {"role": "tool", "tool_name": "time", "content": "noon"},
            {"role": "tool", "content": "cold", "tool_name": "weather"},
            {"role": "tool", "content": "mild"},
        ],
    )
    assert [tool.as_json() for tool in request.tools] == [tool]
    assert request.messages[1] == Message(
        "assistant",
        "",
        reasoning="where?",
        tool_calls=(
            ToolCall("weather", {"city": "Oslo"}, "call00001"),
            ToolCall("time", {}, "given"),
            ToolCall("weather", {"city": "Bern"}, "call00003"),
        ),
    )
    assert [message.tool_call_id for message in request.messages[2:]] == ["given", "call00001", "call00003"]
    assert request.messages[2].name == "time"


def test_a_tool_without_a_type_is_a_function() -> None:
    assert wanted(tools=[{"function": {"name": "f"}}]).tools[0].name == "f"
    assert refusal(tools=[{"type": "function", "function": {}}]).field == "tools[0]"
    assert refusal(tools=[{"function": {"name": "f"}}] * 2).field == "tools[1].function.name"


def test_images_stand_before_the_text() -> None:
    [message] = wanted(messages=[{**USER, "images": [PICTURE]}]).messages
    image, text = message.parts or ()
    assert isinstance(image, ImagePart) and image.data == b"picture" and text == "hello"
    assert message.text == "hello"
    for wrong in ("no base64", "", "/etc/passwd", "https://example.com/a.png", 7):
        assert refusal(messages=[{**USER, "images": [wrong]}]).field == "messages[0].images[0]"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"mesages": []}, "mesages"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{**USER, "thinking": "x"}]}, "messages[0].thinking"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{**USER, "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{**USER, "audio": "x"}]}, "messages[0].audio"),
        ({"think": "high"}, "think"),
        ({"stream": "yes"}, "stream"),
        ({"shift": True}, "shift"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"options": {"num_gpu": 99}}, "options.num_gpu"),
        ({"options": {"num_threads": 4}}, "options.num_threads"),
        ({"options": {"top_p": 1.5}}, "options.top_p"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ({"options": {"stop": "a"}}, "options.stop"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx"),
    ],
)
def test_what_is_refused_is_named(body: dict[str, Any], field: str) -> None:
    error = refusal(**body)
    assert error.field == field and field in str(error)


def test_a_lenient_server_drops_what_is_refused() -> None:
    dropped: list[str] = []
    asked = chat(options={"mirostat": 2, "temperature": 1}, color="red", dropped=dropped)
    assert dropped == ["color", "options.mirostat"]
    assert asked.wanted is not None and asked.wanted.options == {"temperature": 1.0}


# Generate ------------------------------------------------------------------------------------------------------------
def test_a_prompt_is_what_a_user_says() -> None:
    asked = generate(prompt="hi", system="be kind", stream=False, options={"temperature": 0})
    messages = (Message("system", "be kind"), Message("user", "hi"))
    assert asked.wanted == ChatRequest("m", {"temperature": 0.0}, messages=messages)
    assert asked.plain is None, "a system message has no place in plain text"
    alone = generate(prompt="hi").plain
    assert alone == TextRequest("m", {"temperature": 0.8, "top_k": 40, "top_p": 0.9}, stream=True, prompts=("hi",))


def test_raw_and_suffix_are_plain_text() -> None:
    raw = generate(prompt="<s>hi", raw=True).wanted
    assert isinstance(raw, TextRequest) and raw.prompts == ("<s>hi",) and raw.suffix is None
    gap = generate(prompt="def f(", suffix="return x").wanted
    assert isinstance(gap, TextRequest) and gap.suffix == "return x"
    for name, value in (("system", "be kind"), ("images", [PICTURE]), ("think", True)):
        with pytest.raises(FieldError, match=name):
            generate(prompt="hi", raw=True, **{name: value})


@pytest.mark.parametrize(
    "body", [{"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"width": 64}, {"messages": [USER]}]
)
def test_what_generate_refuses(body: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match=next(iter(body))):
        generate(prompt="hi", **body)


def test_nothing_to_say_is_loading() -> None:
    assert generate(keep_alive=0) == Asked(model="m", keep=0.0)
    assert generate(prompt="", context=[], template="") == Asked(model="m")
    assert chat(messages=[], keep_alive=-1) == Asked(model="m", keep=-1.0)


# Embeddings ----------------------------------------------------------------------------------------------------------
def test_embeddings() -> None:
    def embed(**body: Any) -> AskedVectors:
        return ollama_request.embed(Call({"model": "m", **body}))

    assert embed(input="a").wanted.inputs == ("a",) and embed(input=["a", "b"]).wanted.inputs == ("a", "b")
    assert embed(input=[]).wanted.inputs == embed(input="").wanted.inputs == embed().wanted.inputs == ()
    whole = embed(input="a", dimensions=4, truncate=True, keep_alive=3, options={"num_ctx": 7, "temperature": 1})
    assert (whole.wanted.dimensions, whole.wanted.truncate, whole.wanted.normalize) == (4, True, True)
    assert (whole.keep, whole.context) == (3.0, 7)
    old = ollama_request.embeddings(Call({"model": "m", "prompt": "a"}))
    assert old.wanted.inputs == ("a",) and not old.wanted.normalize
    with pytest.raises(FieldError, match=r"input\[1\]"):
        embed(input=["a", 1])


# Durations and names -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5.0), (0, 0.0), (-1, -1.0), (2.5, 2.5), ("5m", 300.0), ("1h30m", 5400.0), ("0", 0.0), ("-1s", -1.0),
        ("1.5s", 1.5), (".5m", 30.0), ("300ms", 0.3), ("+2s", 2.0), ("1000000h", -1.0), (1e12, -1.0),
    ],
)  # fmt: skip
def test_durations(value: Any, seconds: float) -> None:
    assert keep_alive(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "5", "m", "5 m", "5mm", "1e3s", "s" * 70, "٣s", True, [], 1e999, "NaN"])
def test_what_is_no_duration(value: Any) -> None:
    with pytest.raises(FieldError, match="keep_alive"):
        keep_alive(value)


def test_names() -> None:
    assert spellings("llama") == ("llama", "llama:latest")
    assert spellings("llama:latest") == ("llama:latest", "llama")
    assert spellings("llama:8b") == ("llama:8b",)
    assert spellings("localhost:80/org/llama") == ("localhost:80/org/llama", "localhost:80/org/llama:latest")


# Anything ------------------------------------------------------------------------------------------------------------
PARSERS: list[tuple[Table, Any, dict[str, Any]]] = [
    (ollama_fields.CHAT, ollama_request.chat, {"messages": [USER]}),
    (ollama_fields.GENERATE, ollama_request.generate, {"prompt": "hi"}),
    (ollama_fields.EMBED, ollama_request.embed, {"input": "hi"}),
    (ollama_fields.EMBEDDINGS, ollama_request.embeddings, {"prompt": "hi"}),
    (ollama_fields.SHOW, parse_show, {}),
]


@pytest.mark.parametrize(("table", "parse", "least"), PARSERS, ids=[table.request for table, _, _ in PARSERS])
@given(data=st.data(), lenient=st.booleans())
def test_any_body_is_a_request_or_one_line(
    table: Table, parse: Any, least: dict[str, Any], data: st.DataObject, lenient: bool
) -> None:
    words = ("user", "assistant", "tool", "system", "function", "json", "5m", PICTURE)
    body = data.draw(bodies(table, *words, model="m", **least))
    dropped: list[str] | None = [] if lenient else None
    with refusing():
        parse(Call(body, dropped=dropped))
    assert all(name.isascii() and name.isprintable() for name in dropped or ())
