"""What is left of schemas that cannot be enforced whole: it compiles, and admits whatever the schema admits."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.text.relaxed import relaxed

TEXTS = {"type": "string"}
CASES: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (
        {"properties": {"a": {"type": "array", "uniqueItems": True, "items": {**TEXTS, "format": "odd"}}}},
        {"properties": {"a": {"type": "array", "items": TEXTS}}},
        ["properties.a.uniqueItems", "properties.a.items.format"],
    ),
    ({"if": TEXTS, "then": {}, "else": {}, "not": {}, **TEXTS}, TEXTS, ["if", "then", "else", "not"]),
    ({"oneOf": [TEXTS, {**TEXTS, "minLength": 2}]}, {"anyOf": [TEXTS, {**TEXTS, "minLength": 2}]}, ["oneOf"]),
    ({"oneOf": [TEXTS, {"type": "null"}], "not": {}}, {"oneOf": [TEXTS, {"type": "null"}]}, ["not"]),
    ({**TEXTS, "pattern": "(?=a)b"}, TEXTS, ["pattern"]),
    ({"items": [TEXTS], "additionalItems": False}, {}, ["items", "additionalItems"]),
    (
        {"type": "number", "minimum": 1, "exclusiveMinimum": True},
        {"type": "number", "minimum": 1},
        ["exclusiveMinimum"],
    ),
    (
        {"type": "object", "patternProperties": {"(?=a)": TEXTS}, "additionalProperties": False},
        {"type": "object"},
        ["patternProperties"],
    ),
    (
        {"$defs": {"x": {"contains": TEXTS}}, "properties": {"a": {"$ref": "#/$defs/x"}}},
        {"$defs": {"x": {}}, "properties": {"a": {"$ref": "#/$defs/x"}}},
        ["$defs.x.contains"],
    ),
    # A property may have any name.
    (
        {"properties": {"not": TEXTS, "format": TEXTS}, "not": {}},
        {"properties": {"not": TEXTS, "format": TEXTS}},
        ["not"],
    ),
]


@pytest.mark.parametrize(("schema", "expected", "left"), CASES, ids=lambda one: str(one)[:40])
def test_what_cannot_be_enforced_is_left_out_and_named(
    schema: dict[str, Any], expected: dict[str, Any], left: list[str]
) -> None:
    assert relaxed(schema) == (expected, tuple(left))
    assert relaxed(expected) == (expected, ())


def test_what_can_be_enforced_is_not_touched() -> None:
    schema = {"type": "object", "properties": {"a": {"oneOf": [TEXTS, {"type": "null"}]}}, "required": ["a"]}
    assert relaxed(schema)[0] is schema


@pytest.mark.parametrize("schema", [{"type": "odd"}, {**TEXTS, "minLength": "x"}, {"$ref": "#/nowhere"}])
def test_what_is_no_schema_stays_none(schema: dict[str, Any]) -> None:
    assert relaxed(schema) == (schema, ())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["string", "array", "object", "integer"]),
            "uniqueItems": st.booleans(),
            "minLength": st.integers(0, 2),
            "pattern": st.sampled_from(["^a", "(?=a)"]),
            "minItems": st.integers(0, 2),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "items": inner,
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "(?=b)"]), inner, max_size=2),
            "additionalProperties": inner | st.booleans(),
            "required": st.lists(st.sampled_from("abc"), unique=True, max_size=2),
            **{key: inner for key in ("not", "if", "then", "else", "contains")},
            **{key: st.lists(inner, min_size=1, max_size=3) for key in ("oneOf", "anyOf", "allOf")},
        },
    ),
    max_leaves=6,
)


@given(schema=SCHEMAS, value=VALUES)
def test_what_is_left_admits_no_less(schema: dict[str, Any], value: Any) -> None:
    found, left = relaxed(schema)
    assert bool(left) == (json.dumps(found) != json.dumps(schema))
    if jsonschema.Draft202012Validator(schema).is_valid(value):
        assert jsonschema.Draft202012Validator(found).is_valid(value)
