"""Who may ask for what: what the server needs of its keys, and the gate of a server that has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import HTTPConnection

from herder.serve.dialect import Problem


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. key: the key's name, a label of metrics, logs and usage rows, never the secret; "" without keys.
    models: the served names that it may use, None for all. administers: whether it may fetch and delete models."""

    key: str = ""
    models: frozenset[str] | None = None
    administers: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request has used. path: the route's, in Starlette's notation. status: of the HTTP response; 499 when the
    client went away. seconds: from the request's head to the answer's end."""

    request_id: str
    path: str
    model: str
    status: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class Gate(Protocol):
    """What stands between a connection and the models. Every method runs on the event loop and must not block it."""

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        """From the request's head alone, before its body is read. A Problem is the answer."""
        ...

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        """Whether it may use this model (its served name) now: allowed models, limits per minute, quota. A request that
        is admitted is recorded once, whatever becomes of it."""
        ...

    async def record(self, principal: Principal, usage: Usage) -> None:
        """What an admitted request has used."""
        ...


class Open:
    """Everybody may do everything: a server without keys, which listens on this machine only."""

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        return Principal()

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        return None

    async def record(self, principal: Principal, usage: Usage) -> None:
        pass
