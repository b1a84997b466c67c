"""docs/dialects.md is what the tables say."""

from __future__ import annotations

from pathlib import Path

from herder.serve.dialect import Embed, Generate
from herder.serve.dialects_page import page, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dialects.md"


def test_the_page_is_what_the_tables_say() -> None:
    message = "docs/dialects.md is stale: python -m herder.serve.dialects_page > docs/dialects.md"
    assert PAGE.read_text(encoding="utf-8") == page(), message


def test_every_refusal_says_why() -> None:
    fields = [(t.request, f) for _, t in tables() for f in (*t.fields, *t.extensions)]
    assert not [(request, field.name) for request, field in fields if field.status == "refused" and not field.note]
    assert not [(request, field.name) for request, field in fields if "\n" in field.note or "\n" in field.name]


def test_every_route_that_runs_a_model_has_a_table() -> None:
    modules = {module.__name__: module for module, _ in tables()}
    requests = [table.request for _, table in tables()]
    assert len(modules) > 1 and len(requests) == len(set(requests))
    for module in modules.values():
        # A path that an API has under two of its versions is one request.
        paths = {route.path.rpartition("/")[2] for route in module.ROUTES if isinstance(route, Generate | Embed)}
        assert len(paths) <= len(module.TABLES), f"{module.__name__}: a route without a table"
