"""Gemini's schemas as JSON Schema, which jsonschema then understands."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from herder.serve.dialects.gemini_schema import json_schema
from herder.serve.fields import FieldError
from tests.serve.dialects.bodies import UNSAFE, refusing


def converted(schema: Any, **more: Any) -> dict[str, Any]:
    found = json_schema(schema, "schema", **more)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def test_a_schema_with_everything() -> None:
    schema = {
        "type": "OBJECT",
        "title": "City",
        "description": "a city",
        "properties": {
            "name": {"type": "STRING", "minLength": "1", "max_length": 80, "pattern": "^[A-Z]"},
            "people": {"type": "INTEGER", "format": "int32", "minimum": 0},
            "kind": {"type": "STRING", "format": "enum", "enum": ["old", "new"], "nullable": True},
            "founded": {"type": "STRING", "format": "date", "example": "1040-01-01"},
            "rivers": {"type": "ARRAY", "items": {"ref": "#/defs/River"}, "minItems": 1, "maxItems": 3},
            "height": {"anyOf": [{"type": "NUMBER", "format": "double"}, {"type": "STRING"}], "nullable": True},
            "twin": {"ref": "#/defs/River", "nullable": True},
        },
        "required": ["name"],
        "propertyOrdering": ["people", "name"],
        "defs": {"River": {"type": "string"}},
    }
    found = converted(schema, closed=True)
    assert found == {
        "type": "object",
        "title": "City",
        "description": "a city",
        "properties": {
            "people": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
            "name": {"type": "string", "minLength": 1, "maxLength": 80, "pattern": "^[A-Z]"},
            "kind": {"type": ["string", "null"], "enum": ["old", "new", None]},
            "founded": {"type": "string", "format": "date", "examples": ["1040-01-01"]},
            "rivers": {"type": "array", "items": {"$ref": "#/$defs/River"}, "minItems": 1, "maxItems": 3},
            "height": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]},
            "twin": {"anyOf": [{"$ref": "#/$defs/River"}, {"type": "null"}]},
        },
        "required": ["name"],
        "$defs": {"River": {"type": "string"}},
        "additionalProperties": False,
    }
    assert list(found["properties"])[:2] == ["people", "name"]
    jsonschema.validate({"name": "Oslo", "kind": None, "rivers": ["Alna"], "twin": None}, found)


def test_only_answers_are_closed() -> None:
    assert "additionalProperties" not in converted({"type": "OBJECT", "properties": {"a": {"type": "STRING"}}})
    assert converted({"type": "OBJECT", "additionalProperties": {"type": "NULL"}}, closed=True) == {
        "type": "object",
        "additionalProperties": {"type": "null"},
    }


@pytest.mark.parametrize(
    "schema",
    [
        "STRING",
        {"type": "TEXT"},
        {"type": "STRING", "minimal": 1},
        {"type": "ARRAY", "minItems": "many"},
        {"type": "OBJECT", "properties": {}, "propertyOrdering": ["a"]},
        {"anyOf": []},
        {"enum": [1]},
    ],
)
def test_refused(schema: Any) -> None:
    with pytest.raises(FieldError, match=r"^schema"):
        json_schema(schema, "schema")


def test_the_clients_own_schema() -> None:
    """Every field that the client's type has is read."""
    alone = {
        "type": "STRING",
        "anyOf": [{"type": "NULL"}],
        "items": {"type": "STRING"},
        "enum": ["a"],
        "nullable": True,
    }
    values: dict[str, Any] = {
        "additionalProperties": True, "defs": {}, "ref": "#/defs/A", "default": 1, "description": "d", "example": 1,
        "format": "int64", "pattern": "a", "properties": {"a": {}}, "propertyOrdering": ["a"], "required": ["a"],
        "title": "t", **alone,
        **dict.fromkeys(("maxItems", "maxLength", "maxProperties", "maximum"), 9),
        **dict.fromkeys(("minItems", "minLength", "minProperties", "minimum"), 1),
    }  # fmt: skip
    assert set(values) == {field.alias or name for name, field in types.Schema.model_fields.items()}
    found = json_schema(values, "schema")
    assert found["minimum"] == 1 and found["maximum"] == 9 and found["type"] == ["string", "null"]


NAMES = st.sampled_from(
    [*UNSAFE, "type", "format", "anyOf", "items", "properties", "enum", "nullable", "minimum", "ref", "defs"]
)
VALUES = st.recursive(
    st.sampled_from(["STRING", "object", "int32", "date", True, 1, 2.5, None]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=10,
)


@given(VALUES)
def test_any_schema_is_read_or_refused(schema: Any) -> None:
    with refusing():
        json_schema(schema, "schema", closed=True)
