"""The API as an OpenAPI document, written from the dialects' routes and tables of fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herder.serve.dialect import Dialect, Embed, Generate, Route
from herder.serve.fields import Field, Status, Table

VENDORS = {"openai": "OpenAI", "anthropic": "Anthropic", "gemini": "Gemini", "ollama": "Ollama", "native": "Herder"}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")  # Starlette's notation


def describe(dialects: Sequence[Dialect], version: str) -> dict[str, Any]:
    """An OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1). The tables have no types, so neither have its
    properties: it says which fields exist and what becomes of each, `x-herder-status`."""
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        tables = {table.request: table for table in getattr(dialect, "TABLES", ())}
        for route in dialect.ROUTES:
            path = _PARAMETER.sub(r"{\1}", route.path)
            table = next(
                (tables[key] for key in (f"{route.method} {route.path}", f"{route.method} {path}") if key in tables),
                None,
            )
            # Two vendors may share a path; the first one is described.
            paths.setdefault(path, {}).setdefault(route.method.lower(), _operation(dialect, route, table))
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Herder",
            "version": version,
            "description": "The APIs of OpenAI, Anthropic, Gemini and Ollama, over models on this machine.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def _operation(dialect: Dialect, route: Route, table: Table | None) -> dict[str, Any]:
    success: dict[str, Any] = {"application/json": {}}
    if isinstance(route, Generate):
        success["text/event-stream"] = {}
        about: object = dialect
    else:
        about = dialect if isinstance(route, Embed) else route.handler
    operation: dict[str, Any] = {
        "tags": [_tag(dialect.NAME)],
        "summary": _first_line(about),
        "responses": {
            "200": {"description": "The answer.", "content": success},
            "default": {"description": "An error in the vendor's own shape.", "content": {"application/json": {}}},
        },
    }
    if names := _PARAMETER.findall(route.path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if table is not None and route.method == "GET":
        operation.setdefault("parameters", []).extend(_query(field) for field in table.fields)
    elif table is not None:
        schema = {"type": "object", **object_schema((*table.fields, *table.extensions))}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _query(field: Field) -> dict[str, Any]:
    """A field that stands in the URL."""
    found = {"name": field.name, "in": "query", "schema": {"type": "string"}, "x-herder-status": field.status.value}
    return found | ({"description": field.note} if field.note else {})


def object_schema(fields: Iterable[Field]) -> dict[str, Any]:
    """The JSON Schema of an object with these fields, `a.b` and `a[].b` inside `a`. A refused field is there too: with
    values that ask for nothing it is taken."""
    root: dict[str, Any] = {}
    for field in fields:
        at = root
        for name, brackets in re.findall(r"([^.\[\]]+)((?:\[\])*)", field.name):
            at = at.setdefault("properties", {}).setdefault(name, {})
            for _ in range(len(brackets) // 2):
                at = at.setdefault("items", {})
        at["x-herder-status"] = field.status.value
        if field.note:
            at["description"] = field.note
        if field.status is Status.REFUSED:
            at["enum"] = list(field.neutral)
    return _closed(root)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """No other fields than those named, at any depth that names some."""
    if "items" in schema:
        _closed(schema["items"])
    properties: Mapping[str, dict[str, Any]] = schema.get("properties", {})
    for inner in properties.values():
        _closed(inner)
    if properties:
        schema["additionalProperties"] = False
    return schema


def _tag(name: str) -> str:
    vendor, _, rest = name.partition("_")
    return f"{VENDORS.get(vendor, vendor)} {rest.replace('_', ' ')}".strip()


def _first_line(about: object) -> str:
    lines = (about.__doc__ or "").strip().splitlines()
    return lines[0].removesuffix(".") if lines else ""
