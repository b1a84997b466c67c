"""Calls under a grammar: random walks through it give calls that parse() reads, whose arguments follow their schemas,
and that the stream sends as they come."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.format import ChatFormat
from herder.chat.load import named_format
from herder.chat.message import Message, Tool
from herder.chat.streaming import AnswerStream
from herder.chat.template import JinjaFormat
from herder.chat.tool_grammar import Choice, answer_form, chosen
from herder.core.errors import UsageError
from herder.core.request import Constraint
from herder.text.grammar import Grammars, TokenGrammar
from herder.text.tokenizer import Tokenizer
from tests.chat.test_streaming import Joined, check, hermes

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -99, "maximum": 99}, "y": {"type": "boolean"}},
    "required": ["x"],
    "additionalProperties": False,
}
GET = Tool(
    "get",
    "Gets.",
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "deep": {"type": "boolean"},
            "point": {"$ref": "#/$defs/point"},
        },
        "required": ["name"],
        "additionalProperties": False,
        "$defs": {"point": POINT},
    },
)
SET = Tool("set_x", None, {"type": "object", "properties": {"v": {"enum": [1, "a", None, [True]]}}, "required": ["v"],
                           "additionalProperties": False})  # fmt: skip
PING = Tool("ping")
TOOLS = [GET, SET, PING]
SCHEMAS: dict[str, Any] = {tool.name: tool.parameters or {"type": "object", "maxProperties": 0} for tool in TOOLS}
STEPS = 220


class Case:
    """A format, its conversation's options, and compiled grammars."""

    def __init__(self, chat_format: ChatFormat, tokenizer: Tokenizer, grammars: Grammars, **options: Any) -> None:
        self.chat_format = chat_format
        self.tokenizer = tokenizer
        self.grammars = grammars
        self.options = options

    def grammar(self, choice: Choice, parallel: bool = True, content: Constraint | None = None) -> TokenGrammar:
        form = answer_form(
            self.chat_format, TOOLS, choice=choice, parallel=parallel, content=content, options=self.options
        )
        assert form is not None
        return self.grammars.compile(form)

    def stream(self) -> AnswerStream:
        return AnswerStream(self.chat_format, self.tokenizer, tools=SCHEMAS.keys(), enforced=True, options=self.options)


@pytest.fixture(scope="session")
def cases(llama3: Tokenizer, spm: Tokenizer) -> dict[str, Case]:
    format3, mistral = named_format(llama3, "llama3"), named_format(spm, "mistral-v3")
    llama = Grammars(llama3, llama3.vocab_size, format3.stop_ids)
    pieces = Grammars(spm, spm.vocab_size, mistral.stop_ids)
    return {
        "json": Case(format3, llama3, llama),
        "ipython": Case(format3, llama3, llama, builtin_tools=[]),
        "tag": Case(format3, llama3, llama, tool_notation="tag"),
        "python": Case(format3, llama3, llama, tool_notation="python"),
        "hermes": Case(hermes(llama3), llama3, llama),
        "list": Case(mistral, spm, pieces),
        "tag with pieces": Case(JinjaFormat(spm, "{{ tools }}<function={{ messages }}"), spm, pieces),
    }


def walk(grammar: TokenGrammar, draw: random.Random, begin: list[int]) -> tuple[list[int], bool]:
    """Tokens that the masks allow, drawn at random after `begin`, and whether they are a whole answer."""
    tokens: list[int] = []
    while not grammar.complete and len(tokens) < STEPS:
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(grammar.mask(), np.uint8), bitorder="little"))
        ends = grammar.end_tokens & set(allowed.tolist()) if grammar.may_end else frozenset()
        assert bool(ends) == grammar.may_end, "the end is allowed exactly where the answer may end"
        if len(tokens) < len(begin):
            token = begin[len(tokens)]
        elif ends and draw.random() < 0.5:
            break
        else:
            token = int(draw.choice(allowed[~np.isin(allowed, list(grammar.end_tokens))]))
        assert token in allowed and grammar.accept(token)
        tokens.append(token)
    return tokens, grammar.complete or grammar.may_end


def read(case: Case, tokens: list[int]) -> tuple[Joined, AnswerStream, int]:
    """What the stream gave, itself, and with how many tokens the first arguments came."""
    stream, joined, first = case.stream(), Joined(), 0
    for i, token in enumerate(tokens):
        joined.feed(stream.push(token))
        if joined.calls and joined.calls[0][1] and not first:
            first = i + 1
    joined.feed(stream.finish())
    return joined, stream, first


def follows(message: Message) -> None:
    for call in message.tool_calls:
        if call.name in SCHEMAS:
            jsonschema.validate(call.arguments, SCHEMAS[call.name], jsonschema.Draft202012Validator)


BEGINNINGS = {
    "json": '{"name": "get"',
    "ipython": '{"type": "function", "name": "set_x"',
    "tag": "Well. <function=",
    "python": "[get(",
    "hermes": "<tool_call>",
    "list": "Well.",
    "tag with pieces": "a\n<function=",
}


@pytest.mark.parametrize("name", BEGINNINGS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), choice=st.sampled_from(["auto", "called", "required"]), parallel=st.booleans())
def test_walks_give_calls(cases: dict[str, Case], name: str, seed: int, choice: str, parallel: bool) -> None:
    """auto from the beginning, auto from where a call begins, or calls alone."""
    case = cases[name]
    begin = case.tokenizer.encode(BEGINNINGS[name]) if choice == "called" else []
    if begin and name == "list":
        begin.append(case.tokenizer.control_tokens()["[TOOL_CALLS]"])
    grammar = case.grammar("required" if choice == "required" else "auto", parallel)
    tokens, whole = walk(grammar, random.Random(seed), begin)
    joined, stream, _ = read(case, tokens)
    if not whole:  # cut off: what was sent stands, and all calls but the last are whole
        assert stream.message is not None
        for _, arguments in joined.calls[: stream.cut]:
            json.loads(arguments)
        return
    message = case.chat_format.parse(tokens, tools=SCHEMAS.keys())
    check(joined, message)
    follows(message)
    assert stream.message == message and stream.cut is None
    if choice != "auto":
        assert message.tool_calls
        assert case.options.get("builtin_tools") is not None or all(c.name in SCHEMAS for c in message.tool_calls)
    if not parallel:
        assert len(message.tool_calls) <= 1


CALLS = {
    "json": '{"name": "get", "parameters": {"name": "x", "deep": true}}',
    "tag": 'Well. <function=get>{"name": "x", "deep": true}</function>',
    "python": '[get(name="x", deep=True, point={"x": 1, "y": false}), ping()]',
    "hermes": 'Well.\n<tool_call>\n{"name": "get", "arguments": {"name": "x", "deep": true}}\n</tool_call>',
    "tag with pieces": '<function=get>{"name": "x", "deep": true}</function>',
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_as_models_write_them(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    tokens = case.tokenizer.encode(CALLS[name])
    grammar = case.grammar("auto")
    assert all(map(grammar.accept, tokens)) and grammar.may_end
    joined, _, first = read(case, tokens)
    check(joined, case.chat_format.parse(tokens, tools=SCHEMAS.keys()))
    assert joined.calls[0][0] == "get"
    assert 0 < first < len(tokens), "arguments come before the end"


def test_arguments_behind_a_token_come_before_the_end(cases: dict[str, Case]) -> None:
    case = cases["list"]
    mark = case.tokenizer.control_tokens()["[TOOL_CALLS]"]
    call = '[{"name": "get", "arguments": {"name": "x"}, "id": "abcdefghi"}, {"name": "ping", "arguments": {}}]'
    tokens = [mark, *case.tokenizer.encode(call)]
    grammar = case.grammar("required")
    assert all(map(grammar.accept, tokens)) and grammar.complete
    joined, _, first = read(case, tokens)
    assert [call[0] for call in joined.calls] == ["get", "ping"] and 0 < first < len(tokens) // 2


@pytest.mark.parametrize("name", ["json", "python", "tag"])
@pytest.mark.parametrize("text", ["Hello {", '{"name": "Bob"}', "[1, 2]", "a <b>", "[getx"])
def test_text_is_free_and_comes_at_once(cases: dict[str, Case], name: str, text: str) -> None:
    case = cases[name]
    tokens = case.tokenizer.encode(text)
    grammar = case.grammar("auto")
    assert all(map(grammar.accept, tokens)) and grammar.may_end
    joined, _, _ = read(case, tokens)
    assert joined == Joined(text)


def test_wrong_calls_are_never_allowed(cases: dict[str, Case]) -> None:
    for name, text in {
        "json": '{"name": "get", "parameters": {"name": 1',
        "python": "[get(deep=True",
        "tag": "<function=nope>",
        "hermes": '<tool_call>\n{"name": "nope"',
    }.items():
        grammar = cases[name].grammar("auto")
        assert not all(map(grammar.accept, cases[name].tokenizer.encode(text)))


def test_none_bans_the_opening_token(cases: dict[str, Case]) -> None:
    for name, mark in {"json": "<|python_tag|>", "list": "[TOOL_CALLS]"}.items():
        case = cases[name]
        token = case.tokenizer.control_tokens()[mark]
        assert not case.grammar("none").accept(token) and case.grammar("auto").accept(token)


def test_nothing_is_a_call_where_there_are_none(cases: dict[str, Case]) -> None:
    case = cases["json"]
    tokens = case.tokenizer.encode(CALLS["json"])
    stream = AnswerStream(case.chat_format, case.tokenizer, tools=SCHEMAS.keys(), calls=False)
    pieces = [piece for token in tokens for piece in stream.push(token)]
    joined = Joined()
    joined.feed([*pieces, *stream.finish()])
    assert joined == Joined(CALLS["json"]) and len(pieces) == len(tokens)


CONTENT = Constraint("schema", {"type": "object", "properties": {"z": {"const": 1}}, "required": ["z"],
                                "additionalProperties": False})  # fmt: skip


@pytest.mark.parametrize("name", ["json", "python", "tag", "list"])
def test_a_form_or_a_call(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    grammar = case.grammar("auto", content=CONTENT)
    formed = grammar.copy()
    assert all(map(formed.accept, case.tokenizer.encode('{"z": 1}'))) and formed.complete
    assert not all(map(grammar.accept, case.tokenizer.encode("Hello")))


def test_thoughts_come_before_the_form(deepseek: Tokenizer) -> None:
    chat_format = named_format(deepseek, "r1")
    form = answer_form(chat_format, [], choice=None, content=CONTENT)
    assert form is not None
    grammar = Grammars(deepseek, deepseek.vocab_size, chat_format.stop_ids).compile(form)
    close = deepseek.id_of("</think>")
    assert close is not None
    tokens = [*deepseek.encode("Let me see.\n"), close, *deepseek.encode('\n\n{"z": 1}')]
    assert all(map(grammar.accept, tokens)) and grammar.complete
    stream = AnswerStream(chat_format, deepseek)
    joined = Joined()
    for token in tokens:
        joined.feed(stream.push(token))
    joined.feed(stream.finish())
    assert joined == Joined('{"z": 1}', "Let me see.")


def test_what_cannot_be_asked_for(cases: dict[str, Case], llama2: Tokenizer) -> None:
    plain, format3 = named_format(llama2, "llama2"), cases["json"].chat_format
    with pytest.raises(UsageError, match=r"has no notation for calls: .* or give the answer a schema"):
        answer_form(plain, TOOLS, choice="required")
    with pytest.raises(UsageError, match="none is given"):
        answer_form(format3, [], choice="required")
    with pytest.raises(UsageError, match="no Python identifier"):
        answer_form(format3, [Tool("a-b")], choice="auto", options={"tool_notation": "python"})
    with pytest.raises(UsageError, match="anyOf, which no list of keywords"):
        answer_form(format3, [Tool("a", None, {"anyOf": []})], choice="auto", options={"tool_notation": "python"})
    with pytest.raises(UsageError, match="expected auto, required, none or the name of a tool"):
        chosen(TOOLS, "nope")
    assert chosen(TOOLS, "ping") == ([PING], "required")
