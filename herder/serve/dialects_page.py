"""docs/dialects.md, written from the dialects' tables: `python -m herder.serve.dialects_page > docs/dialects.md`."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

from herder.serve import dialects
from herder.serve.fields import Field, Status, Table

_HEAD = """\
<!-- Written by `python -m herder.serve.dialects_page > docs/dialects.md` from herder/serve/dialects; do not edit. -->

# Dialects

Every field of every API that `herder serve` speaks, and what becomes of it. **Accepted means honoured**: a field that
is not listed here, or is refused, is the vendor's own 400 error, which names it. With `--lenient` such a field is left
out instead, and the response's header `x-herder-ignored-fields` names it.

- **supported**: it means here what it means there.
- **translated**: it has an equivalent here, which the note names.
- **refused**: it has none; the note says what to do. Values that ask for nothing are taken all the same.
- A field marked + is not the vendor's: other servers have added it to this API, or we have.

A field inside another is written with its path; `[]` stands for any index. What is inside a refused field is refused
with it. Tests compare these tables with the request types of the vendors' own clients, so a field that a vendor adds is
noticed.
"""


def tables() -> Iterator[tuple[ModuleType, Table]]:
    """The tables of all dialects, each with its module."""
    for info in pkgutil.iter_modules(dialects.__path__):
        module = importlib.import_module(f"{dialects.__name__}.{info.name}")
        if hasattr(module, "ROUTES"):  # the others are parts of dialects
            yield from ((module, table) for table in module.TABLES)


def page() -> str:
    found = [table for _, table in tables()]
    parts = [_HEAD, _overview(found), *map(_section, found)]
    return "\n".join(parts)


def _overview(found: list[Table]) -> str:
    lines = ["| request | supported | translated | refused | added |", "|---|---:|---:|---:|---:|"]
    for table in found:
        count = Counter(field.status for field in table.fields)
        numbers = " | ".join(str(count[status]) for status in Status)
        lines.append(f"| [`{table.request}`](#{_anchor(table)}) | {numbers} | {len(table.extensions)} |")
    return "\n".join(lines) + "\n"


def _anchor(table: Table) -> str:
    """As GitHub makes one of a heading: lower case, spaces to hyphens, punctuation gone."""
    return "".join(c if c.isalnum() or c in "-_" else "-" if c == " " else "" for c in table.request.lower())


def _section(table: Table) -> str:
    lines = [f"## {table.request}", "", f"Source: {table.source}", ""]
    if not table.fields:
        return "\n".join([*lines, "Takes no fields.", ""])
    lines += ["| field | | note |", "|---|---|---|"]
    lines += [_row(field, "") for field in table.fields]
    lines += [_row(field, " +") for field in table.extensions]
    return "\n".join(lines) + "\n"


def _row(field: Field, mark: str) -> str:
    taken = [json.dumps(value) for value in field.neutral if value is not None]
    note = field.note
    if taken:
        note += ("; " if note else "") + "taken: " + ", ".join(f"`{value}`" for value in taken)
    return f"| `{field.name}`{mark} | {field.status.value} | {note.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print(page(), end="")
