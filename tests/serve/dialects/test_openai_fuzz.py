"""Bodies that nobody meant: a dialect takes them or names what is wrong, and does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.errors import UsageError
from herder.serve.dialect import Call
from herder.serve.dialects import native, openai_chat, openai_completions, openai_embeddings
from herder.serve.fields import Field, Status, Table

PARSERS: list[tuple[Callable[[Call], Any], Table]] = [
    (openai_chat.parse, openai_chat.TABLE),
    (openai_completions.parse, openai_completions.TABLE),
    (openai_embeddings.parse, openai_embeddings.TABLE),
    (native.parse_tokenize, native.TOKENIZE),
    (native.parse_detokenize, native.DETOKENIZE),
    (native.parse_score, native.SCORE),
]
words = st.sampled_from(
    ["user", "assistant", "tool", "system", "function", "text", "image_url", "json_schema", "auto", "required", "m", ""]
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    words,
    st.text(max_size=5),
    st.sampled_from([10**400, -1, 0, 1]),
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def objects(table: Table, path: str, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the fields that the table has there: their inner objects where they have some, or anything."""
    names = sorted(table.level(path))

    def value(name: str) -> st.SearchStrategy[Any]:
        options = [leaves, values]
        if depth < 4 and table.level(f"{path}{name}."):
            options += [objects(table, f"{path}{name}.", depth + 1)] * 2
        if depth < 4 and table.level(f"{path}{name}[]."):
            options += [st.lists(objects(table, f"{path}{name}[].", depth + 1), max_size=2)] * 2
        return st.one_of(options)

    chosen = st.lists(st.sampled_from(names), unique=True, max_size=6)
    fields = chosen.flatmap(lambda some: st.fixed_dictionaries({name: value(name) for name in some}))
    return st.deferred(lambda: fields)


@pytest.mark.parametrize(("parse", "table"), PARSERS, ids=[table.request for _, table in PARSERS])
@settings(max_examples=50)
@given(data=st.data(), lenient=st.booleans())
def test_any_object(parse: Callable[[Call], Any], table: Table, data: st.DataObject, lenient: bool) -> None:
    good = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "tokens": [1]}
    base = {name: value for name, value in good.items() if name in table.level("")}
    if "messages" in base:
        base.pop("prompt", None)
    body = base | data.draw(objects(table, "") | st.dictionaries(st.text(max_size=8), values, max_size=3))
    dropped: list[str] | None = [] if lenient else None
    try:
        parse(Call(body, dropped=dropped))
    except UsageError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1000
        message.encode()
        (getattr(error, "field", "") or "").encode("latin-1")
    assert all(name.isascii() and name.isprintable() for name in dropped or ())


@pytest.mark.parametrize(("parse", "table"), PARSERS, ids=[table.request for _, table in PARSERS])
def test_every_refused_field_is_refused(parse: Callable[[Call], Any], table: Table) -> None:
    """At the top, where a value that asks for something can be made up without knowing the field."""

    def refused(field: Field) -> bool:
        return field.status is Status.REFUSED and "." not in field.name and "[" not in field.name

    for field in filter(refused, (*table.fields, *table.extensions)):
        with pytest.raises(UsageError, match=field.name):
            parse(Call({"model": "m", field.name: {"a": "value"}}))
        for neutral in field.neutral:
            try:
                parse(Call({"model": "m", field.name: neutral}))
            except UsageError as error:  # of what is missing, not of this
                assert not str(error).startswith(field.name)
