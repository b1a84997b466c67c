"""The fields of a vendor's request, read from the types of its own client, and how a dialect's table compares.

Understands what the clients describe requests with: TypedDict, pydantic models (by their alias on the wire) and
dataclasses, in unions, lists and mappings. A path is written as in serve/fields.py: `messages[].content[].text`; values
of a mapping with any key are `name{}.field`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import typing_extensions

from herder.serve.fields import Status, Table

_WRAPPERS = (typing.Required, typing.NotRequired, typing_extensions.Required, typing_extensions.NotRequired)

# typing_extensions has its own before Python 3.12.
_ALIASES = tuple({typing_extensions.TypeAliasType, getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType)})


def paths(kind: Any, prefix: str = "", *, names: Mapping[str, str] | None = None) -> set[str]:
    """Every field of a type, those of inner objects too. A type inside itself is not entered again.

    names: fields of Python that have another name on the wire.
    """
    return set(_walk(kind, prefix, names or {}, ()))


def assert_complete(
    table: Table,
    *kinds: Any,
    unsent: Iterable[str] = (),
    added: Iterable[str] = (),
    whole: Iterable[str] = (),
    names: Mapping[str, str] | None = None,
) -> None:
    """Fails unless `table.fields` are exactly the fields of `kinds` (what is inside a refused field may be left out).

    unsent: fields of the types that never reach the wire. added: fields on the wire that the types lack (in the path or
    the query, say). whole: objects that the dialect hands on as they are, whose fields it does not list (a JSON
    schema). Each of these must be there, so that none outlives its reason.
    """
    vendor = {path for kind in kinds for path in paths(kind, names=names)}
    ours = [field.name for field in table.fields]
    refused = {field.name for field in table.fields if field.status is Status.REFUSED}
    unsent, added, whole = set(unsent), set(added), set(whole)
    assert len(ours) == len(set(ours)), (
        f"{table.request}: listed twice: {sorted({n for n in ours if ours.count(n) > 1})}"
    )
    assert unsent <= vendor, f"{table.request}: not among the client's fields any more: {sorted(unsent - vendor)}"
    assert not added & vendor, f"{table.request}: the client has these by now: {sorted(added & vendor)}"
    assert whole <= vendor, f"{table.request}: not among the client's fields any more: {sorted(whole - vendor)}"
    expected = {path for path in vendor if not any(_inside(path, other) for other in whole | unsent)} - unsent | added
    missing = {path for path in expected - set(ours) if not any(_inside(path, other) for other in refused)}
    assert not missing, f"{table.request} lacks fields of {table.source}: {sorted(missing)}"
    stale = {name for name in set(ours) - expected if not any(_inside(name, other) for other in whole)}
    assert not stale, f"{table.request} has fields that {table.source} lacks (extensions?): {sorted(stale)}"
    extensions = [field.name for field in table.extensions]
    assert not set(extensions) & set(ours), f"{table.request}: fields that are also extensions"


def _inside(path: str, outer: str) -> bool:
    """Whether a path lies inside an object, or inside the values of a list or mapping of that name."""
    return path.startswith((f"{outer}.", f"{outer}[", f"{outer}{{"))


def _walk(kind: Any, path: str, names: Mapping[str, str], within: tuple[Any, ...]) -> Iterator[str]:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if isinstance(kind, _ALIASES):
        yield from _walk(kind.__value__, path, names, within)
    elif origin is typing.Annotated or origin in _WRAPPERS:
        yield from _walk(arguments[0], path, names, within)
    elif origin in (typing.Union, types.UnionType):
        for each in arguments:
            yield from _walk(each, path, names, within)
    elif origin is not None and origin is not typing.Literal and isinstance(origin, type):
        if issubclass(origin, collections.abc.Mapping):
            yield from _walk(arguments[1], path + "{}", names, within)
        elif issubclass(origin, collections.abc.Iterable):
            for each in arguments:
                yield from _walk(each, path + "[]", names, within)
        elif arguments:  # a generic protocol, such as SequenceNotStr
            yield from _walk(arguments[0], path + "[]", names, within)
    elif isinstance(kind, type) and kind not in within:
        for name, inner in _fields(kind):
            whole = (f"{path}." if path else "") + names.get(name, name)
            yield whole
            yield from _walk(inner, whole, names, (*within, kind))


def _fields(kind: type) -> Iterator[tuple[str, Any]]:
    """The fields of a class that describes an object: (name on the wire, type)."""
    if typing_extensions.is_typeddict(kind):
        yield from typing.get_type_hints(kind, include_extras=True).items()
    elif (models := getattr(kind, "model_fields", None)) is not None:
        for name, model in models.items():
            yield model.serialization_alias or model.alias or name, model.annotation
    elif dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield field.name, hints[field.name]
