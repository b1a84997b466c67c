"""Jinja templates: the prompts that transformers makes of them, and control tokens that nobody can forge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.message import Message, ToolCall, read_messages, read_tools
from herder.chat.template import JinjaFormat
from herder.core.errors import UsageError
from herder.text.tokenizer import Tokenizer
from tests.chat.templates import CHATML, HANDLED, LLAMA3, MARKED

TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 'x"y', "b": [1, None]}}}
CONVERSATION = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "  1 < 2 & 'a'\n"},
    {"role": "assistant", "content": "é🦙\n\n"},
    {"role": "user", "content": "bye"},
]
WITH_TOOLS = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "4 <2"},
]


def transformers_text(template: str, messages: Any, tokenizer: Tokenizer, **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {
        name: "" if token is None else tokenizer.token(token)
        for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
    }
    rendered, _ = render_jinja_template([messages], chat_template=template, **tokens, **options)
    return str(rendered[0])


def same(template: str, messages: Any, tokenizer: Tokenizer, tools: Any = None, **options: Any) -> None:
    """Text and ids. transformers parses special tokens in the whole text, so there must be none in the contents."""
    expected = transformers_text(
        template, messages, tokenizer, tools=tools, **({"add_generation_prompt": True} | options)
    )
    prompt = JinjaFormat(tokenizer, template).render(read_messages(messages), tools=read_tools(tools), **options)
    assert prompt.text == expected
    assert prompt.encode(tokenizer) == tokenizer.encode(expected, special=True)


# As transformers renders ---------------------------------------------------------------------------------------------
@pytest.mark.oracle
@pytest.mark.parametrize("template", [CHATML, LLAMA3, MARKED, HANDLED])
def test_templates_of_ours(template: str, llama3: Tokenizer, smollm: Tokenizer) -> None:
    for tokenizer in (llama3, smollm):
        for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2]):
            same(template, messages, tokenizer)
            same(template, messages, tokenizer, add_generation_prompt=False)


@pytest.mark.oracle
def test_tools_and_dates(llama3: Tokenizer) -> None:
    same(LLAMA3, WITH_TOOLS, llama3, TOOLS)
    same(LLAMA3, CONVERSATION, llama3, TOOLS, date_string="1 May 2025")


@pytest.mark.oracle
def test_smollm2s_own_template(smollm: Tokenizer, smollm_template: str) -> None:
    same(smollm_template, CONVERSATION, smollm)
    same(smollm_template, CONVERSATION[1:], smollm)
    clean = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda s: "<|" not in s)

    @settings(max_examples=50)
    @given(contents=st.lists(clean, min_size=1, max_size=4))
    def check(contents: list[str]) -> None:
        same(smollm_template, [{"role": "user", "content": content} for content in contents], smollm)

    check()


@pytest.mark.oracle
@pytest.mark.parametrize(
    "expression",
    [
        *(
            "messages | length",
            "messages[-1].content",
            "messages | map(attribute='role') | unique | join(',')",
            "1 / 3",
        ),
        *(
            "messages | selectattr('role', 'equalto', 'user') | list | length",
            "none",
            "true",
            "[1, 'a', none]",
            "nothing",
        ),
        *(
            "{'é<&>': '\"'} | tojson",
            "{'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true)",
            "'a' ~ 1 ~ none",
            "1.5 | int",
        ),
        *(
            "messages | groupby('role') | length",
            "messages | batch(2) | list | length",
            "'a,b'.split(',') | last",
            "2 ** 10",
        ),
        *(
            "'<b>' | e",
            "'<b>' | safe ~ '<i>'",
            "'%05d' % 42",
            "'{:>5}'.format('a')",
            "'abc'[::-1]",
            "7 // 2",
            "7 % 4",
            "'ab' * 3",
        ),
        *(
            "'x' if nothing is defined else 'y'",
            "nothing | default('d')",
            "'Ab cD' | title",
            "'a\\nb' | indent(4)",
            "-3 | abs",
        ),
        *(
            "[3, 1, 2] | sort | join",
            "{'b': 1, 'a': 2} | dictsort",
            "{'a': 1}.items() | list",
            "[1, 2, 3] | sum",
            "[1, 2] | max",
        ),
        *(
            "'a' in 'abc'",
            "'role' in messages[0]",
            "messages[0].get('x', 'y')",
            "range(5) | list",
            "' x ' | trim | length",
        ),
        *(
            "'abc' | first",
            "[1, 2, 3] | reject('odd') | list",
            "'a b c' | wordcount",
            "'abcdef' | truncate(4)",
            "3.7 | round",
        ),
    ],
)
def test_expressions(smollm: Tokenizer, expression: str) -> None:
    same("{{ " + expression + " }}", CONVERSATION, smollm)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
        "a\n  {# comment #}\nb\n{% raw %}{{ x }}{% endraw %}\n\n{{ 'c' }}\n",
        "{% set x %}{{ messages[0].content }}{% endset %}{{ x | trim }}{% filter upper %}a{% endfilter %}",
        "{% macro m(a, b='c') %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m('x') %}y{% endcall %}",
        "{% for m in messages recursive %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{% else %}-{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.previtem is defined }}{% endfor %}",
        "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}",
        "{% set ns = namespace(x=[]) %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}{% endfor %}{{ ns.x }}",
        "{%- for k, v in messages[0].items() -%} {{ k }}={{ v }} {%- endfor -%}",
    ],
)
def test_statements(smollm: Tokenizer, template: str) -> None:
    same(template, CONVERSATION, smollm)


@pytest.mark.oracle
def test_the_date_of_today(llama3: Tokenizer) -> None:
    template = "{{ strftime_now('%d %b %Y') }}"
    before = transformers_text(template, CONVERSATION, llama3)
    ours = JinjaFormat(llama3, template).render(read_messages(CONVERSATION)).text
    assert ours in (before, transformers_text(template, CONVERSATION, llama3))


# Options and answers -------------------------------------------------------------------------------------------------
def test_options_that_the_template_does_not_read(llama3: Tokenizer) -> None:
    chat = JinjaFormat(llama3, LLAMA3)
    with pytest.raises(
        UsageError, match="there is no option 'temperature': the model's chat template does not read it"
    ):
        chat.render([Message("user", "x")], temperature=1)
    for name in ("messages", "bos_token"):
        with pytest.raises(UsageError, match=f"there is no option '{name}'"):
            chat.render(**{"messages": [Message("user", "x")], name: []}) if name != "messages" else _twice(chat)
    with pytest.raises(UsageError, match="no place for tools"):
        JinjaFormat(llama3, CHATML).render([Message("user", "x")], tools=read_tools(TOOLS))


def _twice(chat: JinjaFormat) -> None:
    raise UsageError("there is no option 'messages': it is an argument")


def test_answers_with_calls(smollm: Tokenizer) -> None:
    answer = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    hermes = JinjaFormat(smollm, CHATML + "{# answers in <tool_call> #}")
    assert hermes.parse(answer) == Message("assistant", None, (ToolCall("f", {"a": 1}),))
    assert hermes.parse(smollm.encode(answer)) == hermes.parse(answer)
    assert hermes.parse(answer, tools=["g"]) == Message("assistant", answer)
    assert JinjaFormat(smollm, CHATML).parse(answer) == Message("assistant", answer)


def test_mistrals_calls(spm: Tokenizer) -> None:
    chat = JinjaFormat(spm, "{{ bos_token }}[TOOL_CALLS]")
    calls = json.dumps([{"name": "f", "arguments": {"a": 1}, "id": "abc"}])
    mark = spm.id_of("[TOOL_CALLS]")
    assert mark is not None
    assert chat.parse([mark, *spm.encode(calls)]) == Message("assistant", None, (ToolCall("f", {"a": 1}, "abc"),))
    assert chat.parse([mark, *spm.encode("no JSON")]).content == "no JSON"


def test_reasoning_where_the_template_reads_it(smollm: Tokenizer) -> None:
    thought = [Message("user", "x"), Message("assistant", "y", reasoning="z"), Message("user", "w")]
    reads = "{% for m in messages %}{{ m.reasoning_content | default('-') }}{% endfor %}"
    assert JinjaFormat(smollm, reads).render(thought).text == "-z-"
    with pytest.raises(UsageError, match=r"messages\[1\] has reasoning_content: the chat format jinja has no place"):
        JinjaFormat(smollm, CHATML).render(thought)
