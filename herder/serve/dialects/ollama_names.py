"""Names of models as Ollama's clients say them: NAME:TAG, where no tag is :latest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from herder.serve.dialect import Problem
from herder.serve.problems import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

    from herder.serve.models import Served
    from herder.serve.server import Server

LATEST = ":latest"


def spellings(name: str) -> tuple[str, ...]:
    """The names that a name may mean here, nearest first."""
    if name.endswith(LATEST):
        return name, name.removesuffix(LATEST)
    return (name,) if ":" in name.rpartition("/")[2] else (name, name + LATEST)


def served_as(request: Request, server: Server, name: str) -> Served:
    """The served model of this name. Raises Refusal: there is none, or the key may not use it."""
    allowed = server.principal(request).models
    for spelling in spellings(name):
        try:
            served = server.models.find(spelling)
        except Refusal:
            continue
        if allowed is not None and served.name not in allowed:
            message = f"this API key may not use the model {name[:200]!r}"
            raise Refusal(Problem("forbidden", message, "model", "model_not_allowed"))
        return served
    known = [one.name for one in server.models if allowed is None or one.name in allowed]
    there = ", ".join(sorted(known)[:8]) or "none"
    message = f"model {name[:200]!r} not found: there is {there}"
    raise Refusal(Problem("not_found", message, "model", "model_not_found"))
