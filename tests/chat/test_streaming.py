"""Answers read while they come: whatever they are cut into, the pieces join to what parse() says of the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.format import ChatFormat
from herder.chat.load import named_format
from herder.chat.message import Message
from herder.chat.streaming import AnswerPiece, AnswerStream, ArgumentsPiece, CallBegan, ReasoningPiece, TextPiece
from herder.chat.template import JinjaFormat
from herder.text.tokenizer import Tokenizer

TOOLS = ["get", "set_x"]
FRAGMENTS = [
    *(
        "Hello",
        " world",
        " ",
        "\n",
        "é",
        "{",
        "}",
        "[",
        "]",
        '"',
        "<",
        ">",
        "get",
        ".call(",
        "(",
        ")",
        "a=1",
        "; ",
        ", ",
    ),
    *('{"name": "get", "parameters": {"a": {"b": "}\\""}}}', '{"name": "no", "parameters": {}}', '{"answer": 1}'),
    *('[{"name": "get", "arguments": {"é": [1]}}', '[get(a="x)", b=[True])]', "[get()", "[1, 2]", "[nope()]"),
    *("<function=get>", "<function=no>", '{"a": 1}', "</function>", "<function=", "<function", "function="),
    *("<tool_call>", "\n", '{"name": "set_x", "arguments": {}}', "</tool_call>", "<tool", '{"name": "'),
    *('get.call(query="x")', "<think>", "</think>", "</th", "thinking", "<|eot_id|>", "</s>"),
]


@dataclass
class Joined:
    """What the pieces of an answer join to."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def feed(self, pieces: Sequence[AnswerPiece]) -> None:
        for piece in pieces:
            if isinstance(piece, TextPiece):
                assert piece.text
                self.text += piece.text
            elif isinstance(piece, ReasoningPiece):
                assert piece.text
                self.reasoning += piece.text
            elif isinstance(piece, CallBegan):
                assert piece.call == len(self.calls)
                self.calls.append([piece.name, ""])
            else:
                assert isinstance(piece, ArgumentsPiece) and piece.call == len(self.calls) - 1
                self.calls[-1][1] += piece.json


def read(stream: AnswerStream, tokens: Sequence[int]) -> Joined:
    joined = Joined()
    for token in tokens:
        joined.feed(stream.push(token))
    joined.feed(stream.finish())
    return joined


def check(joined: Joined, message: Message) -> None:
    assert joined.text == message.text
    assert joined.reasoning == (message.reasoning or "")
    assert [(name, json.loads(text)) for name, text in joined.calls] == [
        (call.name, call.arguments) for call in message.tool_calls
    ]


def hermes(tokenizer: Tokenizer) -> ChatFormat:
    return JinjaFormat(tokenizer, "{{ tools }}<tool_call>{% for m in messages %}{{ m.content }}{% endfor %}")


@pytest.fixture(scope="session")
def formats(
    llama3: Tokenizer, spm: Tokenizer, llama2: Tokenizer, deepseek: Tokenizer, smollm: Tokenizer, llama4: Tokenizer
) -> dict[str, tuple[ChatFormat, Tokenizer]]:
    several = "{{ tools }}<tool_call> [TOOL_CALLS] <function= {{ messages }}"
    return {
        "llama3": (named_format(llama3, "llama3"), llama3),
        "llama4": (named_format(llama4, "llama4"), llama4),
        "mistral-v3": (named_format(spm, "mistral-v3"), spm),
        "hermes": (hermes(llama3), llama3),
        "several": (JinjaFormat(spm, several), spm),
        "r1": (named_format(deepseek, "r1"), deepseek),
        "llama2": (named_format(llama2, "llama2"), llama2),
        "chatml": (named_format(smollm, "chatml"), smollm),
    }


NAMES = ["llama3", "llama4", "mistral-v3", "hermes", "several", "r1", "llama2", "chatml"]
MARKS = ["<|python_tag|>", "<|python_start|>", "<|python_end|>", "[TOOL_CALLS]", "<think>", "</think>"]


@st.composite
def answers(draw: st.DrawFn) -> list[tuple[str, bool]]:
    """(text or control token, whether it is encoded character by character)."""
    pool = st.sampled_from([*FRAGMENTS, *MARKS])
    return [(text, draw(st.booleans())) for text in draw(st.lists(pool, max_size=7))]


def tokens_of(answer: list[tuple[str, bool]], tokenizer: Tokenizer) -> list[int]:
    control = tokenizer.control_tokens()
    ids: list[int] = []
    for i, (text, spread) in enumerate(answer):
        if text in MARKS:
            ids += [control[text]] if text in control else []
        else:
            for part in text if spread else [text]:
                ids += tokenizer.encode(part, start=i == 0, space=i == 0)
    return ids


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150)
@given(answer=answers(), tools=st.sampled_from([TOOLS, TOOLS, [], None]))
def test_pieces_join_to_what_parse_says(
    formats: dict[str, tuple[ChatFormat, Tokenizer]], name: str, answer: list[tuple[str, bool]], tools: list[str] | None
) -> None:
    chat_format, tokenizer = formats[name]
    tokens = tokens_of(answer, tokenizer)
    stream = AnswerStream(chat_format, tokenizer, tools=tools)
    joined = read(stream, tokens)
    check(joined, chat_format.parse(tokens, tools=tools))
    assert stream.message == chat_format.parse(tokens, tools=tools) and stream.cut is None


@pytest.mark.parametrize("name", ["llama3", "hermes", "mistral-v3", "chatml"])
def test_plain_text_comes_at_once(formats: dict[str, tuple[ChatFormat, Tokenizer]], name: str) -> None:
    chat_format, tokenizer = formats[name]
    text = "Once upon a time, said the model, there was a {brace} and a [bracket] and <b>."
    stream, said = AnswerStream(chat_format, tokenizer, tools=TOOLS), ""
    tokens = tokenizer.encode(text)
    for i, token in enumerate(tokens):
        said += "".join([piece.text for piece in stream.push(token) if isinstance(piece, TextPiece)])
        assert len(tokenizer.decode(tokens[: i + 1]).rstrip()) - len(said.rstrip()) <= len("<b")
    assert said == text


def test_thoughts_come_at_once(formats: dict[str, tuple[ChatFormat, Tokenizer]]) -> None:
    chat_format, tokenizer = formats["r1"]
    close = tokenizer.id_of("</think>")
    assert close is not None
    thought, said = tokenizer.encode("I think so."), tokenizer.encode("\n\nYes.")
    stream = AnswerStream(chat_format, tokenizer)
    pieces = [piece for token in thought for piece in stream.push(token)]
    assert "".join([p.text for p in pieces if isinstance(p, ReasoningPiece)]) == "I think so."
    stream.push(close)
    pieces = [piece for token in said for piece in stream.push(token)]
    assert "".join([p.text for p in pieces if isinstance(p, TextPiece)]) == "Yes."
    assert stream.finish() == [] and stream.reasoning_tokens == len(thought) + 1


@pytest.mark.parametrize("tools", [TOOLS, []])
def test_a_stop_string_ends_an_answer(formats: dict[str, tuple[ChatFormat, Tokenizer]], tools: list[str]) -> None:
    for chat_format, tokenizer in formats.values():
        tokens = tokenizer.encode("One, two, three</think>four STOP five")
        stream = AnswerStream(chat_format, tokenizer, tools=tools, stop=["STOP"])
        joined = read(stream, tokens)
        assert stream.stopped == "STOP" and stream.message is not None
        assert (joined.reasoning + joined.text).endswith(("four", "four "))
        check(joined, stream.message)
