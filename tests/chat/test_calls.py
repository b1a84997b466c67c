"""Tool calls: what is written is read back, what Meta's own parser reads we read, and prose stays prose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from herder.chat import calls
from herder.chat.calls import Found
from herder.chat.message import ToolCall
from herder.core.errors import UsageError

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    ),
    max_leaves=6,
)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
python_names = names.filter(
    lambda name: name not in {"if", "in", "is", "or", "as", "and", "not", "for", "def", "del", "try"}
)
tool_calls = st.builds(
    ToolCall, names, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=3)
)
python_calls = st.builds(ToolCall, python_names, st.dictionaries(python_names, values, max_size=3))


@given(found=st.lists(tool_calls, min_size=1, max_size=3))
def test_json_round_trip(found: list[ToolCall]) -> None:
    assert calls.read_json(calls.write_json(found)) == Found(tuple(found))


@given(found=st.lists(tool_calls, min_size=1, max_size=3), before=st.text("ab \n", max_size=5))
def test_tag_round_trip(found: list[ToolCall], before: str) -> None:
    assert calls.read_tag(before + calls.write_tag(found)) == Found(tuple(found), before.rstrip())


@given(found=st.lists(python_calls, min_size=1, max_size=3))
def test_python_round_trip(found: list[ToolCall]) -> None:
    import keyword

    assume(not any(keyword.iskeyword(name) for call in found for name in (call.name, *call.arguments)))
    assert calls.read_python(calls.write_python(found)) == Found(tuple(found))


@given(tool=st.sampled_from(calls.BUILTIN_TOOLS), query=st.text(st.characters(exclude_categories=["Cs"])))
def test_builtin_round_trip(tool: str, query: str) -> None:
    call = ToolCall(tool, {"query": query})
    assert calls.read_builtin(calls.write_builtin(call)) == Found((call,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', [("f", {"a": 1})]),
        ('{"type": "function", "name": "f", "parameters": {}}', [("f", {})]),
        ('{"type": "function", "function": {"name": "f", "arguments": {}}}', [("f", {})]),
        (' [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"b": "}"}}]\n', [("f", {}), ("g", {"b": "}"})]),
        ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [("f", {}), ("g", {})]),
        ('{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}}', [("f", {}), ("g", {})]),
    ],
)
def test_json_notations(text: str, expected: list[tuple[str, Any]]) -> None:
    found = calls.read_json(text)
    assert found is not None and [(call.name, call.arguments) for call in found.calls] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "hello", "{}", "[]", "[1, 2]", "{", "3", '"f"', "null", '{"name": "f"}', '{"parameters": {}}'),
        *('{"name": 3, "parameters": {}}', '{"name": "f", "parameters": []}', '{"name": "", "parameters": {}}'),
        *('{"name": "f", "parameters": {}} and so on', 'I say {"name": "f", "parameters": {}}', "[" * 100_000),
        *('{"name": "f", "parameters": {"a": Infinity}}', '{"name": "f", "parameters": {}, "price": 3}'),
        '{"a": ' * 50_000,
    ],
)
def test_what_is_no_json_call(text: str) -> None:
    assert calls.read_json(text) is None


def test_tags_among_text() -> None:
    found = calls.read_tag('Well. <function=f>{"a": "}</function>"}</function> And <function=g> {} ')
    assert found == Found((ToolCall("f", {"a": "}</function>"}), ToolCall("g", {})), "Well.  And")
    assert calls.read_tag("<function=f>nothing</function>") is None
    assert calls.read_tag('<function=f>{"a": }</function>') is None
    assert calls.read_tag("no call") is None
    assert calls.read_tag("<function=f>{" * 20_000) is None


def test_hermes() -> None:
    text = 'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>'
    text += '{"name": "g", "arguments": {}}'
    assert calls.read_hermes(text) == Found((ToolCall("f", {"a": 1}), ToolCall("g", {})), "I look.")
    assert calls.read_hermes('<tool_call>{"name": "f"}</tool_call>') is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[f()]", [("f", {})]),
        (
            "[f(a=1, b='x'), g(c=[True, None], d={'k': 1.5})]",
            [("f", {"a": 1, "b": "x"}), ("g", {"c": [True, None], "d": {"k": 1.5}})],
        ),
        (" [a.b.c(x=-1)]\n", [("a.b.c", {"x": -1})]),
        ("[f(a=(1, 2))]", [("f", {"a": [1, 2]})]),
    ],
)
def test_python_lists(text: str, expected: list[tuple[str, Any]]) -> None:
    found = calls.read_python(text)
    assert found is not None and [(call.name, call.arguments) for call in found.calls] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "f()", "[f]", "[1]", "[f(1)]", "[f(**x)]", "[f(a=x)]", "[f(a=g())]", "[f(a=1, a=2)]", "[f(), 1]"),
        *(
            "[[f()]]",
            "[f() for x in y]",
            "[f()",
            "[f(a=b'x')]",
            "[f(a={1})]",
            "[f(a=1e999)]",
            "[x[0]()]",
            "[f(a=1)] ok",
        ),
        *("[f(a=" + "(" * 5000 + "1" + ")" * 5000 + ")]", "[f(a=" + "-" * 60_000 + "1)]", "[" + "f()," * 40_000 + "]"),
        *("[f(a=__import__('os'))]", "[f(a='x' * 10**9)]", "[f(a=9**9**9)]"),
    ],
)
def test_what_is_no_python_call(text: str) -> None:
    assert calls.read_python(text) is None


def test_builtin_calls() -> None:
    text = 'brave_search.call(query="a \\"b\\" é"); wolfram_alpha.call(query="1+1")'
    found = calls.read_builtin(text)
    assert found == Found((ToolCall("brave_search", {"query": 'a "b" é'}), ToolCall("wolfram_alpha", {"query": "1+1"})))
    assert calls.read_builtin('brave_search.call(query="C:\\dir")') == Found(
        (ToolCall("brave_search", {"query": "C:\\dir"}),)
    )
    assert calls.read_builtin('I use brave_search.call(query="a")') is None


@pytest.mark.parametrize("call", [ToolCall("brave_search", {}), ToolCall("code_interpreter", {"code": 3})])
def test_builtin_arguments(call: ToolCall) -> None:
    with pytest.raises(UsageError, match="takes one argument"):
        calls.write_builtin(call)


def test_python_needs_identifiers() -> None:
    with pytest.raises(UsageError, match="'a-b' is no Python identifier"):
        calls.write_python([ToolCall("f", {"a-b": 1})])


def test_only_allowed_tools_are_called() -> None:
    text = '{"name": "f", "parameters": {}}'
    readers = (calls.read_json,)
    assert calls.read(text, readers, None).tool_calls == (ToolCall("f", {}),)
    assert calls.read(text, readers, ["f"]).tool_calls == (ToolCall("f", {}),)
    for tools in ([], ["g"]):
        message = calls.read(text, readers, tools)
        assert (message.tool_calls, message.content) == ((), text)


# Meta's own parser ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        '<function=getWeather>{"location":"New York","date":"2023-08-05"}',
        '<function=f>{"n": 10}</function>',
        '{"type": "function", "name": "trending_songs", "parameters": {"n": "10", "genre": "all"}}',
        '{"name": "f", "parameters": {"a": [1, 2]}}',
        '[get_boiling_point(liquid_name="water", celcius=True)]',
        '[f(value=42, ratio=3.14, active=True), g(x=[100, 101], y={"a": "b"})]',
        "[initialize()]",
        "[get_weather(city='San Francisco', metric='celsius'), get_weather(city='Seattle', metric='celsius')]",
    ],
)
def test_metas_parser_reads_the_same_first_call(text: str) -> None:
    from llama_models.llama3.tool_utils import ToolUtils

    name, arguments = ToolUtils.maybe_extract_custom_tool_call(text)
    message = calls.read(text, (calls.read_tag, calls.read_json, calls.read_python), None)
    assert (message.tool_calls[0].name, message.tool_calls[0].arguments) == (name, arguments)


def test_metas_parser_reads_what_we_write() -> None:
    from llama_models.llama3.tool_utils import ToolUtils

    call = ToolCall("f", {"a": 1, "b": "x", "c": [True, None], "d": 1.5})
    for text in (calls.write_json([call]), calls.write_python([call])):
        assert ToolUtils.maybe_extract_custom_tool_call(text) == (call.name, call.arguments)
    query = ToolCall("brave_search", {"query": "gold price"})
    assert ToolUtils.maybe_extract_builtin_tool_call(calls.write_builtin(query)) == ("brave_search", "gold price")
