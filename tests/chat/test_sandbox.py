"""Templates from strangers: each ends in a text or in one line of TemplateError, soon, and touches nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.meter import BASE_TEXT
from herder.chat.provenance import Marks
from herder.chat.sandbox import MAX_SOURCE, Sandbox
from herder.chat.template import _Compiled
from herder.core.errors import TemplateError

SANDBOX = Sandbox()
INPUT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]

# One template a line.
ENDLESS = r"""
{% for i in range(10 ** 9) %}{% endfor %}
{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}
{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}
{% for i in range(100000) %}{% for j in range(100000) %}{{ loop.last }}{% endfor %}{% endfor %}
{% for i in range(100000) %}{% for j in range(100000) if j == 1 %}{% endfor %}{% endfor %}
{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}
{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}
{% macro m() %}{{ caller() }}{% endmacro %}{% macro r() %}{% call m() %}{{ r() }}{% endcall %}{% endmacro %}{{ r() }}
{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}
{% block b %}{{ self.b() }}{% endblock %}
{% for m in range(100000) %}{{ messages == messages | list }}{% endfor %}
{% set x %}{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}{% endset %}
{% filter upper %}{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}{% endfilter %}
""".splitlines()[1:]
ENDLESS += [
    "{% set a = 'a ' * 500000 %}{% for i in range(100000) %}{% set b = " + step + " %}{% endfor %}"
    for step in ("a[1:]", "a.upper()", "a | title", "a | e", "a.split()", "a | wordcount", "'b' in a")
]
ENDLESS += [
    "{% set a = range(90000) | list %}{% for i in range(100000) %}{{ " + step + " }}{% endfor %}"
    for step in ("-1 in a", "a == a[:]", "a | sort | first", "a | map('string') | list | last", "a")
]
HUGE = r"""
{{ 'a' * 10 ** 9 }}
{{ 10 ** 9 * 'a' }}
{{ [1] * 10 ** 9 }}
{{ (1,) * 10 ** 9 }}
{{ ['a' * 1000000] * 1000 }}
{{ 2 ** (10 ** 9) }}
{{ 9 ** 9 ** 9 ** 9 }}
{{ 10 ** 9 ** 9 }}
{{ 1.0 * 10 ** 400 }}
{{ 'a' | center(10 ** 9) }}
{{ 'a'.center(10 ** 9) }}
{{ 'a'.zfill(10 ** 9) }}
{{ 'a'.ljust(10 ** 9, 'b') }}
{{ '%1000000000d' % 1 }}
{{ '%*d' % (10 ** 9, 1) }}
{{ '%(a)1000000000d' % {'a': 1} }}
{{ '%1000000000d' | format(1) }}
{{ '{:1000000000}'.format(1) }}
{{ '{:{}}'.format(1, 10 ** 9) }}
{{ ('{0}' * 100000).format('a' * 100000) }}
{{ ('%s' * 9000) % (('a' * 1000,) * 9000) }}
{{ ('%(a)s' * 9000) % {'a': 'a' * 100000} }}
{{ ('a' * 1000).replace('a', 'b' * 100000) }}
{{ ('a' * 1000000).replace('', 'b' * 1000000) }}
{{ ('a' * 1000) | replace('a', 'b' * 100000) }}
{{ range(100000) | join('b' * 100000) }}
{{ ('b' * 100000).join(range(100000) | map('string')) }}
{{ ('a' * 9999) | indent(10 ** 9) }}
{{ ('\n' * 100000) | indent('a' * 100000) }}
{{ [1] | batch(10 ** 9, 'x') | list }}
{{ [1] | slice(10 ** 9, 'x') | list }}
{{ 5 | round(-(10 ** 9)) }}
{{ 5 | round(10 ** 9, 'ceil') }}
{{ ('f' * 100000) | int(0, 16) }}
{{ messages | tojson(indent=10 ** 9) }}
{{ messages | tojson(separators=('a' * 100000, 'b')) }}
{{ [[1], [2]] | sum(start=[]) }}
{{ (1).to_bytes(10 ** 9, 'big') }}
{{ {}.fromkeys(range(100000), 'x') }}
{{ strftime_now('%1000000000d') }}
{{ strftime_now('%Y' * 10000) }}
{{ 'a'.translate({97: 'b' * 100000}) }}
""".splitlines()[1:]
HUGE += [
    "{% set ns = namespace(x=" + start + ") %}{% for i in range(1000) %}{% set ns.x = " + step + " %}{% endfor %}" + end
    for start, step, end in (
        *(("3", "ns.x * ns.x", ""), ("'a'", "ns.x ~ ns.x", ""), ("'a'", "ns.x + ns.x", ""), ("[1]", "ns.x + ns.x", "")),
        *(("'a'", "[ns.x, ns.x] | join", ""), ("[1]", "[ns.x, ns.x]", "{{ ns.x }}")),
        *(("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"), ("1", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}")),
        ("1", "dict(a=ns.x, b=ns.x)", "{{ ns.x == 1 }}"),
    )
]
ESCAPES = r"""
{{ ''.__class__ }}
{{ ''['__class__'] }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ messages.__class__ }}
{{ '' | attr('__class__') }}
{{ range.__globals__ }}
{{ raise_exception.__code__ }}
{{ raise_exception.__globals__ }}
{{ strftime_now.__globals__['os'].system('id') }}
{{ namespace.__init__.__globals__ }}
{{ self.__init__.__globals__ }}
{{ cycler.__init__.__globals__.os }}
{{ lipsum.__globals__ }}
{{ joiner.__init__ }}
{{ '{0.__class__}'.format(1) }}
{{ ('{' ~ '0.__class__}').format(1) }}
{{ '{a.__class__}'.format_map({'a': 1}) }}
{% set f = '{0.__class__.__init__.__globals__}'.format %}{{ f(raise_exception) }}
{{ ''.format_map({}) }}
{{ messages | map(attribute='__class__') | list }}
{{ messages | map('attr', '__class__') | list }}
{{ messages | selectattr('__class__') | list }}
{{ messages | groupby('__class__') }}
{{ messages | sort(attribute='__class__') }}
{% set g = messages | map('upper') %}{{ g.gi_frame.f_globals }}
{{ loop.__class__ }}
{% for m in messages %}{{ loop.__class__ }}{% endfor %}
{{ messages.append(1) }}
{{ messages[0].update({'a': 1}) }}
{{ messages.clear() }}
{{ dict(a=1).pop('a') }}
{{ 'a'.encode() }}
{{ 'a'.encode('idna') }}
{% include '/etc/passwd' %}
{% import '/etc/passwd' as x %}
{% from '/etc/passwd' import x %}
{% extends '/etc/passwd' %}
{% include ['a', 'b'] ignore missing %}
{{ 'x' | urlize }}
{{ [1, 2] | random }}
{{ get_flashed_messages() }}
{% set ns = namespace() %}{% set ns.a = ns %}
{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}
""".splitlines()[1:]
BROKEN = r"""
{% if
{{
{{ }}
{% endfor %}
{% generation %}x
{{ 'a' | nosuch }}
{{ 1 is nosuch }}
{{ 1 // 0 }}
{{ undefined.x }}
{{ undefined() }}
{{ 'a' + 1 }}
{{ messages[0].content.foo() }}
{{ 'a'() }}
{{ raise_exception('two\n\nlines') }}
""".splitlines()[1:]
BROKEN += [
    *("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "{{ a" + "+ a" * 20000 + " }}", "{{ a" + ".b" * 20000 + " }}"),
    *(
        "{{ a" + "|d" * 20000 + " }}",
        "{{ " + "not " * 15000 + "a }}",
        "{{ " + "-" * 60000 + "a }}",
        "{% if a %}" * 5000,
    ),
    *("{% for a in b %}" * 30 + "{% endfor %}" * 30, "{{ " + "9" * 60000 + " }}", "{#" * 30000, "x" * (MAX_SOURCE + 1)),
    *("{% if a %}" + "{% elif a %}" * 5000 + "{% endif %}", "{{ " + "a if b else " * 5000 + "c }}"),
]


def run(source: str) -> str:
    return _Compiled(SANDBOX, source, Marks({})).run({"messages": INPUT, "tools": None, "documents": None})


@pytest.mark.parametrize("source", [*ENDLESS, *HUGE, *ESCAPES, *BROKEN], ids=lambda source: source[:50])
def test_refused(source: str) -> None:
    with pytest.raises(TemplateError) as found:
        run(source)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500
    assert INPUT == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ENDLESS[2], "the chat template failed: it takes too many steps: does it loop?"),
        (ENDLESS[5], "the chat template failed: it calls itself for ever, or is nested too deep"),
        (HUGE[0], "the chat template failed: a value grows beyond 10"),
        ("{% include '/etc/passwd' %}", "the chat template uses {% include %} in line 1: it must not load files"),
        ("a\n{{ 'a' | nosuch }}", "the chat template cannot be read in line 2: No filter named 'nosuch'."),
        ("{{ raise_exception('Roles must\nalternate') }}", "refuses these messages: Roles must alternate"),
        ("{{ ''.__class__ }}", "the chat template failed: reaching for str.__class__"),
        ("{{ 'a'.encode() }}", "the chat template failed: calling str.encode"),
    ],
)
def test_messages_say_why(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as found:
        run(source)
    assert message in str(found.value)


def test_what_a_long_conversation_needs_is_allowed() -> None:
    """A thousand messages, each looked at a dozen times, with the list itself looked at in every turn."""
    template = (
        "{% set ns = namespace(last='') %}{% for m in messages %}{% if loop.index0 and messages[loop.index0 - 1].role "
        "== m.role %}{{ raise_exception('twice') }}{% endif %}{% set ns.last = m.role %}{{ m.role ~ m.content | trim }}"
        "{% if m.content is string and '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% endif %}"
        "{% endfor %}"
    )
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": f" {i} " + "word " * 200} for i in range(1000)
    ]
    rendered = _Compiled(SANDBOX, template, Marks({})).run({"messages": messages, "tools": None, "documents": None})
    assert len(rendered) > 1_000_000


def test_one_long_message_is_allowed() -> None:
    messages = [{"role": "user", "content": "x" * (4 * BASE_TEXT)}]
    source = "{% for m in messages %}{{ m.content | trim ~ m.content | tojson }}{% endfor %}"
    rendered = _Compiled(SANDBOX, source, Marks({})).run({"messages": messages, "tools": None, "documents": None})
    assert len(rendered) > 8 * BASE_TEXT


def test_renderings_do_not_share_a_budget() -> None:
    template = _Compiled(SANDBOX, "{% for i in range(20000) %}{{ i }}{% endfor %}", Marks({}))
    for _ in range(20):
        template.run({"messages": INPUT, "tools": None, "documents": None})


expressions = st.recursive(
    st.sampled_from(
        ["1", "'a'", "messages", "ns", "i", "x", "none", "range(99)", "[]", "{}", "10 ** 9", "'%s{}'", "loop", "m"]
    ),
    lambda e: st.one_of(
        st.tuples(e, st.sampled_from(["+", "-", "*", "**", "%", "~", "==", "in", "and", "//"]), e)
        .map(" ".join)
        .map("({})".format),
        st.tuples(
            e, st.sampled_from(["list", "length", "tojson", "join", "sort", "trim", "upper", "items", "map('string')"])
        ).map(" | ".join),
        st.tuples(
            e, st.sampled_from(["upper()", "split()", "x", "items()", "role", "__class__", "format(1)", "join('ab')"])
        ).map(".".join),
        st.tuples(e, e).map(lambda two: f"{two[0]}[{two[1]}]"),
        st.tuples(e, e).map(lambda two: f"[{two[0]}, {two[1]}]"),
        e.map("m({})".format),
    ),
    max_leaves=8,
)
statements = st.recursive(
    st.one_of(
        expressions.map("{{{{ {} }}}}".format),
        expressions.map("{{% set x = {} %}}".format),
        expressions.map("{{% set ns.x = {} %}}".format),
    ),
    lambda s: st.one_of(
        st.tuples(expressions, s).map(lambda two: f"{{% for i in {two[0]} %}}{two[1]}{{% endfor %}}"),
        st.tuples(expressions, s).map(lambda two: f"{{% if {two[0]} %}}{two[1]}{{% endif %}}"),
        s.map("{{% set x %}}{}{{% endset %}}".format),
        s.map("{{% macro m(x) %}}{}{{% endmacro %}}".format),
        st.tuples(s, s).map("".join),
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(body=statements)
def test_any_template_ends(body: str) -> None:
    try:
        assert len(run("{% set ns = namespace(x=1) %}" + body)) <= 2 * BASE_TEXT
    except TemplateError as error:
        assert "\n" not in str(error)


@settings(max_examples=200)
@given(source=st.text(st.sampled_from("{}%#-'\"|().[]~+* ifornd\n=01a_"), max_size=60))
def test_any_source_ends(source: str) -> None:
    try:
        run(source)
    except TemplateError as error:
        assert "\n" not in str(error)
