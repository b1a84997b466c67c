"""Schemas of arguments as a list of keywords: what is left compiles, and what the branches name can be written."""

from __future__ import annotations

from typing import Any, cast

import pytest

from herder.chat.format import CallStyle, ChatFormat
from herder.chat.keywords import as_keywords
from herder.chat.message import Tool
from herder.chat.tool_grammar import answer_form
from herder.core.errors import UsageError

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
CASES: list[tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    (
        {"properties": {"a": TEXT, "b": TEXT}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"properties": {"a": TEXT, "b": TEXT}},
        ("anyOf",),
    ),
    (
        {
            "type": "object",
            "properties": {"kind": TEXT},
            "required": ["kind"],
            "oneOf": [{"properties": {"x": WHOLE}}, {"allOf": [{"properties": {"x": TEXT, "kind": {"const": "c"}}}]}],
            "minProperties": 2,
        },
        {
            "type": "object",
            "properties": {"kind": TEXT, "x": {"anyOf": [WHOLE, TEXT]}},
            "required": ["kind"],
        },
        ("oneOf", "minProperties"),
    ),
    ({"properties": {"a": TEXT}, "required": ["a"]}, {"properties": {"a": TEXT}, "required": ["a"]}, ()),
]


class Python:
    name = "python"

    def call_style(self, **options: Any) -> CallStyle:
        return CallStyle("python")


def form_of(schema: Any) -> object:
    return answer_form(cast(ChatFormat, Python()), [Tool("f", None, schema)], choice="required")


@pytest.mark.parametrize(("schema", "expected", "left"), CASES)
def test_what_is_said_of_the_whole_is_left_out_and_named(
    schema: dict[str, Any], expected: dict[str, Any], left: tuple[str, ...]
) -> None:
    found = as_keywords(schema)
    assert found == (expected, left)
    assert form_of(found[0]) is not None


@pytest.mark.parametrize(
    "schema", [{"anyOf": []}, {"anyOf": [True]}, {"$ref": "#/$defs/a"}, {"oneOf": [{"$ref": "#/$defs/a"}]}]
)
def test_what_is_said_elsewhere_stays_an_error(schema: dict[str, Any]) -> None:
    found, left = as_keywords(schema)
    assert (found, left) == (schema, ())
    with pytest.raises(UsageError, match="no list of keywords can be held to"):
        form_of(found)
