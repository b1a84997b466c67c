"""Schemas as far as they can be enforced: what llguidance does not know is left out of them, and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from herder.core.errors import UsageError
from herder.core.request import Constraint
from herder.text.grammar import LISTS, MAX_SOURCE, NAMED, OLD, ONE, grammar_of, limits

# Each of these only narrows what a schema admits, so a schema without them admits no less.
_UNKNOWN = frozenset(
    {
        *("uniqueItems", "not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
        *("$dynamicRef", "$recursiveRef", *OLD),
    }
)


def relaxed(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The schema without the keywords that cannot be enforced, and their paths: ("properties.tags.uniqueItems",).

    It admits whatever the schema admits. A schema that can be enforced comes back as it is; one that says what no
    schema can say (a type that is none) is not made to say less: compiling it is still an error.
    """
    if _holds(schema):
        return schema, ()
    left: list[str] = []
    found = _less(schema, "", left)
    return (found, tuple(left)) if left else (schema, ())


def _holds(schema: Mapping[str, Any]) -> bool:
    try:
        from llguidance import LLMatcher
    except ImportError:  # compiling says so
        return True
    try:
        source = json.dumps({"grammars": [grammar_of(Constraint("schema", schema))]})
    except UsageError:
        return False
    # Of one that is too large, too, compiling says so.
    return len(source) > MAX_SOURCE or not LLMatcher.validate_grammar(source, limits=limits())


def _less(schema: Mapping[str, Any], where: str, left: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    patterns = True
    for key, value in schema.items():
        if key in _UNKNOWN or (key in _ALONE and _ALONE[key](value) and not _holds({key: value})):
            left.append(where + key)
        elif key == "patternProperties" and not _known(value):
            left.append(where + key)
            patterns = False
        elif key == "oneOf" and not _holds({key: value}):
            left.append(where + key)
            if "anyOf" not in schema and isinstance(value, list):
                found["anyOf"] = [_inner(one, f"{where}{key}.", left) for one in value]
        elif key in ONE:
            found[key] = _inner(value, f"{where}{key}.", left)
        elif key in LISTS and isinstance(value, list):
            found[key] = [_inner(one, f"{where}{key}.", left) for one in value]
        elif key in NAMED and isinstance(value, Mapping):
            found[key] = {name: _inner(one, f"{where}{key}.{name}.", left) for name, one in value.items()}
        else:
            found[key] = value
    if not patterns:  # what they named is now among the rest, of which nobody knows it apart
        found.pop("additionalProperties", None)
    return found


def _known(patterns: Any) -> bool:
    return not isinstance(patterns, Mapping) or _holds({"patternProperties": dict.fromkeys(patterns, True)})


def _inner(value: Any, where: str, left: list[str]) -> Any:
    return _less(value, where, left) if isinstance(value, Mapping) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# Keywords with values that llguidance knows and others that it does not; a value of the wrong type stays an error.
_ALONE: Mapping[str, Callable[[Any], bool]] = {
    "format": _is_text,
    "pattern": _is_text,
    "items": lambda value: isinstance(value, list),
    "exclusiveMinimum": lambda value: isinstance(value, bool),
    "exclusiveMaximum": lambda value: isinstance(value, bool),
}
