"""Who may ask for what: what the server needs of its keys, and the gate of a server that has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from herder.serve.dialect import Problem

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. key: the key's name, a label of metrics, logs and usage rows, never the secret; "" without keys.
    models: the served names that it may use, None for all. administers: whether it may fetch and delete models.
    address: of the client, for the audit log."""

    key: str = ""
    models: frozenset[str] | None = None
    administers: bool = True
    address: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request has used. path: the route's, in Starlette's notation. status: of the HTTP response; 499 when the
    client went away. seconds: from the request's head to the answer's end. prompt: its text, only where the
    configuration says that prompts are logged. image_hosts: which the server has asked for images."""

    request_id: str
    path: str
    model: str
    status: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    prompt: str | None = None
    image_hosts: tuple[str, ...] = ()


class Gate(Protocol):
    """What stands between a connection and the models. Every method runs on the event loop and must not block it."""

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        """From the request's head alone, before its body is read. A Problem is the answer."""
        ...

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        """Whether it may use this model (its served name) now: allowed models, limits per minute, quota. A request that
        is admitted is recorded once, whatever becomes of it."""
        ...

    async def observe(self, principal: Principal) -> Problem | None:
        """Whether it may read the metrics, which name every key and what it uses."""
        ...

    async def record(self, principal: Principal, usage: Usage) -> None:
        """What an admitted request has used; awaited before the end of the answer is sent, so that what a client has
        seen finished is never lost. What is recorded stays so when the caller is cancelled."""
        ...

    async def close(self) -> None:
        """Writes what is left and gives files back."""
        ...


class Open:
    """Everybody may do everything: a server without keys, which listens on this machine only."""

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        return Principal(address=address_of(connection))

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        return None

    async def observe(self, principal: Principal) -> Problem | None:
        return None

    async def record(self, principal: Principal, usage: Usage) -> None:
        pass

    async def close(self) -> None:
        pass


def address_of(connection: HTTPConnection) -> str:
    """The client's, as the socket has it: what headers say of it anybody can write."""
    return connection.client.host if connection.client is not None else ""
