"""The gate of a server with API keys: who may ask, for which models, how much, and what it has used."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from herder.serve import keys, keys_store, usage
from herder.serve.audit import Audited
from herder.serve.config import Config
from herder.serve.dialect import Problem
from herder.serve.gate import Gate, Open, Principal, Usage, address_of
from herder.serve.keys_store import Key
from herder.serve.limits import Windows
from herder.serve.writer import Writer

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


def presented(connection: HTTPConnection) -> str:
    """The key that a client sends, as any of the vendors' clients does; "" for none."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    for name in ("x-api-key", "x-goog-api-key"):
        if value := connection.headers.get(name, "").strip():
            return value
    return connection.query_params.get("key", "").strip()


@dataclass(frozen=True, slots=True)
class Holder(Principal):
    """Who asks with a key."""

    owned: Key = field(kw_only=True)


class KeyGate:
    """Opens to those who have a key. Keys are read from the database on each request (a lookup of microseconds), so one
    that is made or revoked while the server runs counts from the next request on.

    Limits per minute live in this process; quotas and usage in the database. clock: seconds since the epoch; ticks:
    seconds that never go back. Raises StorageError when there is no such database.
    """

    def __init__(
        self, path: str | Path, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = keys_store.connect(path)
        rows = keys_store.connect(path)
        self._rows = rows
        self._clock, self._ticks = clock, ticks
        self._windows: defaultdict[str, Windows] = defaultdict(Windows)  # by the key's id
        self._writer: Writer[usage.Entry] = Writer(lambda entries: usage.write(rows, entries), "usage rows")

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        text = presented(connection)
        if not text:
            message = "no API key: send it as `Authorization: Bearer KEY`, x-api-key or x-goog-api-key"
            return Problem("unauthorized", message, code="invalid_api_key")
        try:
            key = keys.known(self._keys, text, self._clock())
        except sqlite3.Error as error:
            return _unreadable(error)
        if key is None:
            message = "this API key is not known here, has expired, or was revoked: ask the server's owner for one"
            return Problem("unauthorized", message, code="invalid_api_key")
        return Holder(key.name, key.models, key.administers, address_of(connection), owned=key)

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        key = _owned(principal)
        if key.models is not None and model not in key.models:
            allowed = ", ".join(sorted(key.models)) or "none"
            message = f"this API key may not use the model {model!r}: it may use {allowed}"
            return Problem("forbidden", message, "model", "model_not_allowed")
        if key.quota is not None:
            now = self._clock()
            try:
                used = usage.spent(self._keys, key, now)
            except sqlite3.Error as error:
                return _unreadable(error)
            if used >= key.quota:
                per = "" if key.period == "ever" else f" per {key.period}"
                message = f"this API key has used {used} of its {key.quota} tokens{per}"
                left = usage.period_left(key.period, now)
                return Problem("rate_limited", message, code="insufficient_quota", retry_after=left)
        ticks, windows = self._ticks(), self._windows[key.id]
        if key.tpm is not None and (wait := windows.tokens.wait(key.tpm, ticks)) > 0:
            return _limited(f"{key.tpm} tokens", wait)
        if key.rpm is not None:
            if (wait := windows.requests.wait(key.rpm, ticks)) > 0:
                return _limited(f"{key.rpm} requests", wait)
            windows.requests.add(ticks)
        return None

    async def observe(self, principal: Principal) -> Problem | None:
        key = _owned(principal)
        if key.observes or key.administers:
            return None
        message = "this API key may not read the metrics: `herder keys create NAME --metrics` makes one that may"
        return Problem("forbidden", message)

    async def record(self, principal: Principal, used: Usage) -> None:
        key = _owned(principal)
        if key.tpm is not None:
            self._windows[key.id].tokens.add(usage.total_of(used).tokens, key.tpm, self._ticks())
        await self._writer.put(usage.Entry(self._clock(), key, used))

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.close)
        self._rows.close()
        self._keys.close()


def _owned(principal: Principal) -> Key:
    assert isinstance(principal, Holder), "a principal of another gate"
    return principal.owned


def _limited(what: str, wait: float) -> Problem:
    message = f"this API key may use {what} a minute: try again in {wait:.1f} s"
    return Problem("rate_limited", message, code="rate_limit_exceeded", retry_after=wait)


def _unreadable(error: sqlite3.Error) -> Problem:
    return Problem("unavailable", f"the server cannot read its API keys: {error}", retry_after=5.0)


def open_gate(config: Config) -> Gate:
    """The gate that a configuration asks for: with or without keys, with or without an audit log. Call it with an event
    loop running or before; close() it in the end. Raises StorageError."""
    gate: Gate = Open() if config.keys is None else KeyGate(config.keys)
    return gate if config.logging.audit is None else Audited(gate, config.logging.audit)
