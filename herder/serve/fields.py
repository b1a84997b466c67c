"""Accepted means honoured: a dialect's request as a table of every field of the vendor's API, and what becomes of each.

A field is SUPPORTED (it means here what it means there), TRANSLATED (it has an equivalent here, named in `note`),
ACCEPTED for values that ask for nothing (`neutral`), or REFUSED with the reason. A refused or unknown field is the
vendor's own 400 that names it; a server that is lenient drops it instead and says so in a response header.
docs/dialects.md is written from these tables, and a test compares them with the request types of the vendors' clients.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herder.core.errors import UsageError


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
    body: Mapping[str, Any], table: Sequence[Field], dropped: list[str] | None = None, path: str = ""
) -> dict[str, Any]:
    """The fields of one object (`path` "" or "stream_options." or "tools[0].") that are to be honoured.

    dropped None: an unknown or refused field raises FieldError. A list: such fields are left out and named in it.
    Fields of inner objects stand in the table under their whole name, with [] for any index.
    """
    general = _without_indices(path)
    known = {f.name.removeprefix(general): f for f in table if f.name.startswith(general)}
    kept = {}
    for name, value in body.items():
        field = known.get(name)
        if field is not None and field.status is not Status.REFUSED:
            kept[name] = value
        elif field is None or not any(value is n or (value == n and type(value) is type(n)) for n in field.neutral):
            if dropped is None:
                why = "is not a field of this API" if field is None else f"is not supported: {field.note}"
                raise FieldError(f"{path}{name} {why}", path + name)
            dropped.append(path + name)
    return kept


def _without_indices(path: str) -> str:
    import re

    return re.sub(r"\[\d+\]", "[]", path)
