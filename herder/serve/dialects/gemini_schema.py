"""Gemini's schemas, a form of OpenAPI's, -> JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from herder.serve import values
from herder.serve.dialects.gemini_fields import camel
from herder.serve.fields import FieldError

_TYPES = {name.upper(): name for name in ("string", "number", "integer", "boolean", "array", "object", "null")}
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")  # a stranger's name that may stand in an error
_BOUNDS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_IMPLIED = ("enum", "float", "double")  # formats that the type or the enum says already


def json_schema(value: Any, where: str, *, closed: bool = False) -> dict[str, Any]:
    """closed: an object has the properties that its schema names and no others, unless it says otherwise, as answers of
    Gemini have. Raises FieldError."""
    values.schema(value, where)  # its depth and its text
    return _schema(value, where, closed)


def _schema(value: Any, where: str, closed: bool) -> dict[str, Any]:
    given = {camel(name): inner for name, inner in values.mapping(value, where).items() if inner is not None}
    found: dict[str, Any] = {}
    for name, inner in given.items():
        read = _READERS.get(name)
        if read is None:
            raise FieldError(f"{where} has {values.kind(name)}, which is not a field of a schema", where)
        read(found, name, inner, f"{where}.{name}", closed)
    if "propertyOrdering" in given and "properties" in found:
        found["properties"] = _ordered(found["properties"], given["propertyOrdering"], f"{where}.propertyOrdering")
    if closed and "properties" in found:
        found.setdefault("additionalProperties", False)
    if given.get("nullable"):
        _allow_null(found)
    return found


def _allow_null(found: dict[str, Any]) -> None:
    if "enum" in found:
        found["enum"] = [*found["enum"], None]
    if "type" in found:
        found["type"] = [found["type"], "null"]
    elif "anyOf" in found:
        found["anyOf"] = [*found["anyOf"], {"type": "null"}]
    elif "$ref" in found:
        found["anyOf"] = [{"$ref": found.pop("$ref")}, {"type": "null"}]


def _ordered(properties: Mapping[str, Any], order: Any, where: str) -> dict[str, Any]:
    """The order of the properties is the order in which an answer has them."""
    names = [values.text(name, f"{where}[{i}]") for i, name in enumerate(values.listed(order, where))]
    for name in names:
        if name not in properties:
            raise FieldError(f"{where} has {values.kind(name)}, which is not among the properties", where)
    return {name: properties[name] for name in dict.fromkeys([*names, *properties])}


# One reader for each field: (what is found, the field's name, its value, its path, closed) ----------------------------
def _type(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    kind = values.text(value, where).upper()
    if kind != "TYPE_UNSPECIFIED":
        found["type"] = _TYPES[values.one_of(kind, where, tuple(_TYPES))]


def _format(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    kind = values.text(value, where)
    if kind in _BOUNDS:
        least, most = _BOUNDS[kind]
        found["minimum"], found["maximum"] = (
            max(found.get("minimum", least), least),
            min(found.get("maximum", most), most),
        )
    elif kind not in _IMPLIED:
        found["format"] = kind


def _bound(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    bound = values.number(value, where)
    if name in found:  # of the format
        bound = max(bound, found[name]) if name == "minimum" else min(bound, found[name])
    found[name] = int(bound) if float(bound).is_integer() else bound


def _count(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    if (
        isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
    ):  # int64 is text in their JSON
        value = int(value)
    found[name] = values.integer(value, where, 0, 2**63 - 1)


def _texts(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    found[name] = [values.text(one, f"{where}[{i}]") for i, one in enumerate(values.listed(value, where))]


def _text(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    found[name] = values.text(value, where)


def _inner(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    found[name] = _schema(value, where, closed)


def _named(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    schemas = values.mapping(value, where).items()
    inner = {key: _schema(one, f"{where}.{key}" if _PLAIN.fullmatch(key) else where, closed) for key, one in schemas}
    found["$defs" if name == "defs" else name] = inner


def _any_of(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    schemas = values.listed(value, where, least=1)
    found[name] = [_schema(one, f"{where}[{i}]", closed) for i, one in enumerate(schemas)]


def _additional(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    found[name] = value if isinstance(value, bool) else _schema(value, where, closed)


def _reference(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    path = values.text(value, where)
    found["$ref"] = "#/$defs/" + path.removeprefix("#/defs/") if path.startswith("#/defs/") else path


def _example(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    found["examples"] = [value]


def _default(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    found[name] = value


def _later(found: dict[str, Any], name: str, value: Any, where: str, closed: bool) -> None:
    """Read when the other fields are."""
    if name == "nullable":
        values.boolean(value, where)


_Reader = Callable[[dict[str, Any], str, Any, str, bool], None]
_READERS: dict[str, _Reader] = {
    "type": _type,
    "format": _format,
    "minimum": _bound,
    "maximum": _bound,
    **dict.fromkeys(_COUNTS, _count),
    "enum": _texts,
    "required": _texts,
    "title": _text,
    "description": _text,
    "pattern": _text,
    "items": _inner,
    "properties": _named,
    "defs": _named,
    "anyOf": _any_of,
    "additionalProperties": _additional,
    "ref": _reference,
    "example": _example,
    "default": _default,
    "nullable": _later,
    "propertyOrdering": _later,
}
