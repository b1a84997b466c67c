"""What of a tool's schema a list of keywords can be held to, for calls in Python's notation: `[f(a=1)]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Beside these, a schema says more of the arguments as a whole than a list of keywords can be held to.
OF_KEYWORDS = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "title", "description", "$schema", "$id"),
        *("$comment", "$defs", "definitions", "default", "examples", "deprecated", "strict"),
    }
)
_BRANCHES = ("allOf", "anyOf", "oneOf")


def as_keywords(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The schema of an object without what it says of the object as a whole, and the keywords that this leaves out.

    A property that only branches (anyOf, oneOf, allOf) name may be written, as any of them has it; that it must be, or
    not beside another, is among what is left out. A schema that says what it is elsewhere ($ref), or whose branches are
    none, comes back as it is: the grammar refuses it.
    """
    left = tuple(key for key in schema if key not in OF_KEYWORDS)
    branches = list(_branches(schema))
    if not left or any(not isinstance(one, Mapping) or "$ref" in one for one in (schema, *branches)):
        return schema, ()
    own = schema.get("properties", {})
    named: dict[str, list[Any]] = {}
    for one in branches:
        inner = one.get("properties", {})
        if not isinstance(inner, Mapping) or not isinstance(own, Mapping):
            return schema, ()
        for name in inner.keys() - own.keys():
            named.setdefault(name, []).append(inner[name])
    found = {key: value for key, value in schema.items() if key in OF_KEYWORDS}
    properties = {name: values[0] if len(values) == 1 else {"anyOf": values} for name, values in sorted(named.items())}
    return found | ({"properties": {**own, **properties}} if properties else {}), left


def _branches(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Every one, also those of branches; something that is no schema where they should be."""
    for key in _BRANCHES:
        if key in schema:
            value = schema[key]
            for one in value if isinstance(value, list) and value else [None]:
                yield one
                if isinstance(one, Mapping):
                    yield from _branches(one)
