"""What a dialect is: routes whose requests parse into wire.py and whose answers are encoded from it.

A dialect is a module of herder/serve/dialects with ROUTES and `error`. The application (app.py) does everything else:
sockets, keys, models, running, disconnects, the order of events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from herder.serve.wire import Answer, AnswerEvent, ChatRequest, EmbedRequest, TextRequest

Kind = Literal[
    "invalid",  # 400: a field, a value, a prompt over the window
    "unauthorized",  # 401: no key, or one that is not known
    "forbidden",  # 403: the key may not use this model
    "not_found",  # 404: no such model, response, route
    "too_large",  # 413: the body
    "rate_limited",  # 429: the key's limits; retry_after says when
    "overloaded",  # 429 or the vendor's own: the server is full; retry_after says when
    "timeout",  # the vendor's own: the deadline passed before the first token
    "internal",  # 500: a bug of ours, or the engine failed
    "unavailable",  # 503: draining, or the model is still loading
]


@dataclass(frozen=True, slots=True)
class Problem:
    """An error on its way to a client. field: the request's field that caused it. code: a short machine-readable word
    (context_length_exceeded, model_not_found, ...). retry_after: seconds."""

    kind: Kind
    message: str
    field: str | None = None
    code: str | None = None
    retry_after: float | None = None


def _unspelled(token: int) -> bytes:
    raise AssertionError(f"token {token} is to be spelled, but this context has no vocabulary")


@dataclass(frozen=True, slots=True)
class Context:
    """What an answer says about itself. id: unique, without a prefix. created: seconds since the epoch. model: the name
    that the client asked for. body: the parsed body, for dialects that echo it. token_bytes: the exact bytes of a token
    (a control token's are its spelling), for dialects that spell log-probabilities. fingerprint: changes whenever the
    same seed may give another text: the version and the model's files."""

    id: str
    created: int
    model: str
    body: Mapping[str, Any] = field(default_factory=dict)
    token_bytes: Callable[[int], bytes] = _unspelled
    fingerprint: str | None = None


class Encoder(Protocol):
    """A streamed answer: the bytes for each event as it comes, possibly none. `error` ends a stream that has begun."""

    @property
    def content_type(self) -> str: ...

    def event(self, event: AnswerEvent) -> bytes: ...

    def error(self, problem: Problem) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it came in: its JSON body, the parameters of the path and of the query, and the list that collects
    dropped fields when the server is lenient (None: unknown and refused fields are errors)."""

    body: Mapping[str, Any]
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    dropped: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """A route that generates. parse raises FieldError or UsageError; answer and stream encode."""

    method: str
    path: str  # Starlette's notation
    parse: Callable[[Call], ChatRequest | TextRequest]
    answer: Callable[[ChatRequest | TextRequest, Answer, Context], dict[str, Any]]
    stream: Callable[[ChatRequest | TextRequest, Context], Encoder]


@dataclass(frozen=True, slots=True)
class Embed:
    """A route that embeds: vectors are float32 lists in the order of the inputs, tokens the prompt tokens in all."""

    method: str
    path: str
    parse: Callable[[Call], EmbedRequest]
    answer: Callable[[EmbedRequest, list[list[float]], int, Context], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Other:
    """A route with a handler of its own, (Starlette request, server.Server) -> response: lists of models, token counts,
    stored responses. What it needs of the server is in app.py."""

    method: str
    path: str
    handler: Callable[..., Any]


Route = Generate | Embed | Other


class Dialect(Protocol):
    """A module of herder/serve/dialects. error: HTTP status, headers and body in the vendor's own shape."""

    NAME: str
    ROUTES: tuple[Route, ...]

    def error(self, problem: Problem) -> tuple[int, dict[str, str], dict[str, Any]]: ...
