"""Whose errors a request gets that reaches no route: those of the dialect whose paths are most like its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, PlainTextResponse, Response

if TYPE_CHECKING:
    from starlette.types import Scope

    from herder.serve.dialect import Dialect, Problem


class Nearest:
    """Of these dialects; for a path that is like none, the first."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._prefixes = [(_parts(route.path), dialect) for dialect in dialects for route in dialect.ROUTES]

    def dialect(self, scope: Scope) -> Dialect | None:
        """None where nothing is spoken."""
        parts = _parts(scope["path"])
        best = max((_alike(own, parts) for own, _ in self._prefixes), default=0)
        found = [dialect for own, dialect in self._prefixes if _alike(own, parts) == best]
        return found[spoken([dialect.NAME for dialect in found], scope)] if found else None

    def response(
        self, scope: Scope, problem: Problem, *, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The problem in that dialect's shape. status: instead of the dialect's own for such a problem."""
        dialect = self.dialect(scope)
        if dialect is None:
            return PlainTextResponse(problem.message + "\n", status or 400, dict(headers or {}))
        usual, own, body = dialect.error(problem)
        return JSONResponse(body, status or usual, {**own, **(headers or {})})


def spoken(names: Sequence[str], scope: Scope) -> int:
    """Which of the dialects that share a path (GET /v1/models) is meant: Anthropic's clients send anthropic-version."""
    anthropic = b"anthropic-version" in dict(scope["headers"])
    return next((i for i, name in enumerate(names) if ("anthropic" in name) == anthropic), 0)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _alike(route: list[str], parts: list[str]) -> int:
    count = 0
    for own, given in zip(route, parts, strict=False):
        if own != given:
            break
        count += 1
    return count
