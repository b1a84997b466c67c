"""Values of fields: taken with their types, or refused by name on one short line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from herder.serve import values
from herder.serve.fields import FieldError


@pytest.mark.parametrize(
    ("read", "value", "result"),
    [
        (lambda v: values.text(v, "f"), "h\u00e9", "h\u00e9"),
        (lambda v: values.boolean(v, "f"), False, False),
        (lambda v: values.integer(v, "f", 0, 9), 9, 9),
        (lambda v: values.integer(v, "f"), 3.0, 3),
        (lambda v: values.number(v, "f", -1, 1), 1, 1.0),
        (lambda v: values.one_of(v, "f", ("a", "b")), "b", "b"),
        (lambda v: values.listed(v, "f", 2), [1, 2], [1, 2]),
        (lambda v: values.mapping(v, "f"), {"a": 1}, {"a": 1}),
        (lambda v: values.schema(v, "f"), {"a": [1, None, "x"]}, {"a": [1, None, "x"]}),
    ],
)
def test_taken(read: Callable[[Any], Any], value: Any, result: Any) -> None:
    found = read(value)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda v: values.text(v, "f"), 5),
        (lambda v: values.text(v, "f"), "\ud800"),
        (lambda v: values.text(v, "f", 3), "long"),
        (lambda v: values.boolean(v, "f"), 1),
        (lambda v: values.boolean(v, "f"), "true"),
        (lambda v: values.integer(v, "f"), True),
        (lambda v: values.integer(v, "f"), 1.5),
        (lambda v: values.integer(v, "f"), "1"),
        (lambda v: values.integer(v, "f"), float("inf")),
        (lambda v: values.integer(v, "f", 0, 9), 10),
        pytest.param(lambda v: values.integer(v, "f", 0), -(10**5000), id="huge-integer"),
        (lambda v: values.number(v, "f"), True),
        (lambda v: values.number(v, "f"), float("nan")),
        (lambda v: values.number(v, "f"), 10**400),
        pytest.param(lambda v: values.number(v, "f"), 10**5000, id="huge-number"),
        (lambda v: values.number(v, "f", 0, 1), 1.01),
        (lambda v: values.one_of(v, "f", ("a", "b")), "c"),
        (lambda v: values.one_of(v, "f", ("a", "b")), ["a"]),
        (lambda v: values.listed(v, "f"), "ab"),
        (lambda v: values.listed(v, "f"), {}),
        (lambda v: values.listed(v, "f", None, 1), []),
        (lambda v: values.listed(v, "f", 1), [1, 2]),
        (lambda v: values.mapping(v, "f"), [("a", 1)]),
        (lambda v: values.schema(v, "f"), {"a": "\ud800"}),
        (lambda v: values.text(v, "f"), ["x" * 10000]),
        (lambda v: values.number(v, "f"), "x\n" * 10000),
    ],
)
def test_refused(read: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(FieldError) as caught:
        read(value)
    message = str(caught.value)
    assert caught.value.field == "f" and message.startswith("f") and message.isascii() and message.isprintable()
    assert len(message) < 200
