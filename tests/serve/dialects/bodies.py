"""Bodies that a stranger might send, made up by hypothesis: a table's own field names around any JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from herder.core.errors import UsageError
from herder.serve.fields import Table

UNSAFE = ("\n", "\ud800", "é")  # a line break, half a character, beyond ASCII
HUGE = (10**400, float("inf"))  # 1e999 is infinity to a reader of JSON


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What the block reads may be refused, in one line that can be sent."""
    try:
        yield
    except UsageError as error:
        said = str(error)
        assert said.isprintable() and len(said.encode()) < 1000, ascii(said)


def bodies(table: Table, *words: str, **least: Any) -> st.SearchStrategy[dict[str, Any]]:
    """words: values that are likely to mean something. least: fields that are there unless something else is."""
    known = (*table.fields, *table.extensions)
    names = sorted({part.strip("[]{}") for field in known for part in field.name.split(".")})
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=5),
        st.sampled_from((*words, *UNSAFE, *HUGE)),
    )
    keys = st.sampled_from((*names, *UNSAFE)) | st.text(max_size=5)

    def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4)

    values = st.recursive(leaves, larger, max_leaves=12)
    top = sorted(table.level(""))
    return st.dictionaries(st.sampled_from(top), values, max_size=5).map(lambda body: {**least, **body})
