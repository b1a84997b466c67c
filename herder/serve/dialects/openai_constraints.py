"""What an answer must be, in OpenAI's response_format or vLLM's structured_outputs -> Constraint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from herder.core.request import Constraint
from herder.serve import values
from herder.serve.dialects.openai_options import RENAMED, given
from herder.serve.fields import Field, FieldError, Table, checked, refused, supported, translated

MAX_CHOICES = 1024

FIELDS: tuple[Field, ...] = (
    supported("response_format", "text, json_object or json_schema; a schema that cannot be enforced is an error"),
    supported("response_format.type"),
    supported("response_format.json_schema"),
    supported("response_format.json_schema.schema"),
    translated("response_format.json_schema.name", "a label; the model does not see it"),
    translated("response_format.json_schema.strict", "always enforced, whether asked for or not"),
    refused("response_format.json_schema.description", "write it into a message"),
)

EXTENSIONS: tuple[Field, ...] = (
    supported("structured_outputs", "one of the following; never together with another constraint"),
    supported("structured_outputs.json", "a JSON Schema, as an object or as text"),
    supported("structured_outputs.json_object"),
    supported("structured_outputs.regex", "matches the whole answer"),
    supported("structured_outputs.choice", "a list of texts"),
    supported("structured_outputs.grammar", "in Lark's notation, as llguidance reads it"),
    refused("structured_outputs.structural_tag", "use tools, or structured_outputs.grammar"),
    refused("structured_outputs.whitespace_pattern", "write the grammar in structured_outputs.grammar"),
    refused("structured_outputs.disable_any_whitespace", "write the grammar in structured_outputs.grammar", False),
    refused("structured_outputs.disable_additional_properties", "say it in the schema", False),
    refused("guided_json", RENAMED.format("structured_outputs.json")),
    refused("guided_regex", RENAMED.format("structured_outputs.regex")),
    refused("guided_choice", RENAMED.format("structured_outputs.choice")),
    refused("guided_grammar", RENAMED.format("structured_outputs.grammar")),
    refused("guided_decoding_backend", "there is one: llguidance"),
    refused("guided_whitespace_pattern", "write the grammar in structured_outputs.grammar"),
    refused("grammar", RENAMED.format("structured_outputs.grammar") + ", in Lark's notation"),
    refused("json_schema", RENAMED.format("structured_outputs.json")),
)


def constraint(body: Mapping[str, Any], table: Table, dropped: list[str] | None) -> Constraint | None:
    """None when the answer may be any text. Raises FieldError."""
    formatted = response_format(body, table, dropped)
    structured = structured_outputs(body, table, dropped)
    if formatted is not None and structured is not None:
        raise FieldError("structured_outputs and response_format are both given: leave one out", "structured_outputs")
    return formatted or structured


def response_format(body: Mapping[str, Any], table: Table, dropped: list[str] | None) -> Constraint | None:
    where = "response_format"
    if where not in body:
        return None
    wanted = given(checked(values.mapping(body[where], where), table, dropped, f"{where}."))
    match values.one_of(wanted.get("type"), f"{where}.type", ("text", "json_object", "json_schema")):
        case "text":
            return None
        case "json_object":
            return Constraint("json")
    where = f"{where}.json_schema"
    inner = given(checked(values.mapping(wanted.get("json_schema"), where), table, dropped, f"{where}."))
    if "name" in inner:
        values.text(inner["name"], f"{where}.name", 64)
    values.boolean(inner.get("strict", False), f"{where}.strict")
    return Constraint("schema", values.schema(inner.get("schema"), f"{where}.schema"))


def structured_outputs(body: Mapping[str, Any], table: Table, dropped: list[str] | None) -> Constraint | None:
    """The constraint of vLLM's field, None without it."""
    if "structured_outputs" not in body:
        return None
    where = "structured_outputs"
    inner = given(checked(values.mapping(body[where], where), table, dropped, f"{where}."))
    if len(inner) != 1:
        raise FieldError(f"{where} has {len(inner)} constraints: give exactly one", where)
    [(name, value)] = inner.items()
    where = f"{where}.{name}"
    if name == "json_object":
        return Constraint("json") if values.boolean(value, where) else None
    if name == "json":
        return Constraint("schema", _schema(value, where))
    if name == "choice":
        texts = values.listed(value, where, MAX_CHOICES, 1)
        return Constraint("choice", tuple(values.text(one, f"{where}[{i}]") for i, one in enumerate(texts)))
    return Constraint("regex" if name == "regex" else "lark", values.text(value, where))


def _schema(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise FieldError(f"{where} is text, but not of JSON", where) from None
    return values.schema(value, where)
