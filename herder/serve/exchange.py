"""One HTTP request as the server follows it: who asks, what for, and what it has used."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from herder.serve.dialect import Problem
from herder.serve.gate import Principal, Usage
from herder.serve.problems import Refusal

if TYPE_CHECKING:
    from starlette.types import Scope

MAX_ID = 128


@dataclass(slots=True)
class Exchange:
    """id: the client's x-request-id where it is a plain word, else ours. path: the route's. dropped: fields that a
    lenient server leaves out. deadline: as its header has it. image_hosts: which were asked for images. queue, prefill,
    decode: seconds of the slowest choice."""

    id: str
    path: str
    started: float = field(default_factory=monotonic)
    created: int = field(default_factory=lambda: int(time()))
    principal: Principal = field(default_factory=Principal)
    dropped: list[str] | None = None
    deadline: float | None = None
    model: str = ""
    fingerprint: str | None = None
    status: int = 200
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    unenforced: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    prompt: str | None = None  # only where prompts are logged
    image_hosts: tuple[str, ...] = ()
    settled: Callable[[], Awaitable[None]] | None = None

    async def settle(self) -> None:
        """Records what was used, once; before the end of an answer is sent, so that what a client has seen finished is
        not lost."""
        record, self.settled = self.settled, None
        if record is not None:
            await record()

    def usage(self) -> Usage:
        return Usage(
            self.id,
            self.path,
            self.model,
            self.status,
            self.prompt_tokens,
            self.cached_tokens,
            self.completion_tokens,
            monotonic() - self.started,
            self.prompt,
            self.image_hosts,
        )

    def headers(self) -> dict[str, str]:
        """What every answer carries."""
        # OpenAI's clients read the first, Anthropic's the second.
        headers = {"x-request-id": self.id, "request-id": self.id}
        if self.dropped:
            headers["x-herder-ignored-fields"] = ", ".join(_shown(name) for name in self.dropped[:64])
        if self.truncated:
            headers["x-herder-truncated-tokens"] = str(self.truncated)
        if self.unenforced:
            headers["x-herder-unenforced"] = ", ".join(_shown(name) for name in self.unenforced[:64])
        return headers


def begin(scope: Scope, path: str, lenient: bool) -> Exchange:
    given = dict(scope["headers"])
    exchange = Exchange(_request_id(given.get(b"x-request-id", b"")), path, dropped=[] if lenient else None)
    exchange.deadline = _deadline(given.get(b"x-herder-deadline"))
    return exchange


def of(scope: Scope) -> Exchange:
    exchange = scope["herder.exchange"]
    assert isinstance(exchange, Exchange)
    return exchange


def unique() -> str:
    return os.urandom(12).hex()


def _request_id(given: bytes) -> str:
    text = given.decode("latin-1")
    plain = 0 < len(text) <= MAX_ID and text.isascii() and all(c.isalnum() or c in "-_.:" for c in text)
    return text if plain else unique()


def _deadline(given: bytes | None) -> float | None:
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e6:
        message = f"the header x-herder-deadline is {given[:40].decode('latin-1')!r}: must be seconds, above 0"
        raise Refusal(Problem("invalid", message, "x-herder-deadline"))
    return seconds


def _shown(name: Any) -> str:
    return "".join(c if c.isascii() and c.isprintable() and c != "," else "?" for c in str(name))[:100]
