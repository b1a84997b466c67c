"""Accepted means honoured: a dialect's request as a table of every field of the vendor's API, and what becomes of each.

A field is SUPPORTED (it means here what it means there), TRANSLATED (it has an equivalent here, named in `note`),
ACCEPTED for values that ask for nothing (`neutral`), or REFUSED with the reason. A refused or unknown field is the
vendor's own 400 that names it; a server that is lenient drops it instead and says so in a response header.
docs/dialects.md is written from these tables, and a test compares them with the request types of the vendors' clients.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herder.core.errors import UsageError

# Notes on tools that the vendors' tables share.
LOOSE = "calls follow it; keywords that cannot be enforced are left out, and the header x-herder-unenforced names them"
STRICT = "true: a schema that cannot be enforced whole is an error; false: any object may come"


class Status(enum.StrEnum):
    SUPPORTED = "supported"
    TRANSLATED = "translated"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Field:
    """One field. name: with its path where it is inside another (`stream_options.include_usage`, `tools[].type`).
    neutral: values of a refused field that ask for nothing, and are taken. note: for the reader of the table and, of a
    refused field, what the error says to do."""

    name: str
    status: Status
    note: str = ""
    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Every field of one request. request: method and path, as a reader knows them ("POST /v1/chat/completions").
    source: where the vendor defines it, a type of its client. fields: the vendor's, all of them; an object's own fields
    stand after it, except inside a refused one. extensions: fields that others have added to this API and that we take.
    """

    request: str
    source: str
    fields: tuple[Field, ...]
    extensions: tuple[Field, ...] = ()
    _levels: dict[str, dict[str, Field]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def level(self, path: str) -> Mapping[str, Field]:
        """The fields of one object ("" or "tools[]."), by their names in it."""
        if path not in self._levels:
            self._levels[path] = _level((*self.fields, *self.extensions), path)
        return self._levels[path]


class FieldError(UsageError):
    """A request's field is unknown, refused or wrong. field: its path, for the vendors' error shapes."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def supported(name: str, note: str = "") -> Field:
    return Field(name, Status.SUPPORTED, note)


def translated(name: str, note: str) -> Field:
    return Field(name, Status.TRANSLATED, note)


def refused(name: str, note: str, *neutral: Any) -> Field:
    return Field(name, Status.REFUSED, note, (None, *neutral))


def checked(
    body: Mapping[str, Any], table: Table | Sequence[Field], dropped: list[str] | None = None, path: str = ""
) -> dict[str, Any]:
    """The fields of one object (`path` "" or "stream_options." or "tools[0].") that are to be honoured.

    dropped None: an unknown or refused field raises FieldError. A list: such fields are left out and named in it.
    Fields of inner objects stand in the table under their whole name, with [] for any index.
    """
    general = _INDEX.sub("[]", path)
    known = table.level(general) if isinstance(table, Table) else _level(table, general)
    kept = {}
    for name, value in body.items():
        entry = known.get(name)
        if entry is not None and entry.status is not Status.REFUSED:
            kept[name] = value
        elif entry is None or not any(value is n or (value == n and type(value) is type(n)) for n in entry.neutral):
            # A stranger's name goes into errors and headers: one short line of ASCII.
            whole = path + (name if entry or _PLAIN.fullmatch(name) else ascii(name)[:64])
            if dropped is None:
                why = "is not a field of this API" if entry is None else f"is not supported: {entry.note}"
                raise FieldError(f"{whole} {why}", whole)
            dropped.append(whole)
    return kept


_INDEX = re.compile(r"\[\d+\]")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_$-]{0,63}")


def _level(fields: Iterable[Field], path: str) -> dict[str, Field]:
    """The fields right inside `path`; those of objects further in have a dot or a bracket left in their names."""
    inside = ((f.name.removeprefix(path), f) for f in fields if f.name.startswith(path))
    return {name: f for name, f in inside if name and "." not in name and "[" not in name}
