"""The audit log: a JSON line for every request that showed who asks, and for every one that was turned away."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from herder.core.errors import StorageError
from herder.serve.dialect import Problem
from herder.serve.gate import Gate, Principal, Usage, address_of
from herder.serve.writer import Writer

_STATUS = {"unauthorized": 401, "forbidden": 403, "rate_limited": 429}

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


class Audited:
    """A gate that writes down what another one decides and what is used.

    A line has time (UTC), event ("request", or "denied" with the reason), key (the name), address, model, path, status,
    id (the answer's x-request-id), prompt_tokens, cached_tokens, completion_tokens, seconds; image_hosts where images
    were fetched, prompt where the configuration says that prompts are logged. The file is for its owner only, and
    opened anew for each group of lines, so that whoever rotates logs needs to tell nobody. A line of a request is
    written before its answer ends.
    Raises StorageError when the file cannot be written.
    """

    def __init__(self, gate: Gate, path: str | Path) -> None:
        self._gate = gate
        file = Path(path)
        try:
            _append(file, [])
        except OSError as error:
            raise StorageError(f"the audit log {file} cannot be written: {error.strerror or error}") from None
        self._writer: Writer[str] = Writer(lambda lines: _append(file, lines), f"audit log {file}")

    async def authorize(self, connection: HTTPConnection) -> Principal | Problem:
        found = await self._gate.authorize(connection)
        if isinstance(found, Problem):
            await self._denied(found, "", address_of(connection), "", path=connection.url.path[:200])
        return found

    async def admit(self, principal: Principal, model: str) -> Problem | None:
        problem = await self._gate.admit(principal, model)
        if problem is not None:
            await self._denied(problem, principal.key, principal.address, model)
        return problem

    async def observe(self, principal: Principal) -> Problem | None:
        problem = await self._gate.observe(principal)
        if problem is not None:
            await self._denied(problem, principal.key, principal.address, "", path="/metrics")
        return problem

    async def record(self, principal: Principal, usage: Usage) -> None:
        values: dict[str, object] = {
            "event": "request",
            "key": principal.key,
            "address": principal.address,
            "model": usage.model,
            "path": usage.path,
            "status": usage.status,
            "id": usage.request_id,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "seconds": round(usage.seconds, 3),
        }
        if usage.image_hosts:
            values["image_hosts"] = usage.image_hosts
        if usage.prompt is not None:
            values["prompt"] = usage.prompt
        written = self._writer.put(_line(values))
        await self._gate.record(principal, usage)
        await written

    async def close(self) -> None:
        await self._gate.close()
        await asyncio.to_thread(self._writer.close)

    async def _denied(self, problem: Problem, key: str, address: str, model: str, **more: str) -> None:
        values = {"event": "denied", "key": key, "address": address, "model": model, **more}
        status = _STATUS.get(problem.kind, 503)
        await self._writer.put(_line({**values, "status": status, "reason": problem.code or problem.kind}))


def _line(values: dict[str, object]) -> str:
    """One line whatever is in the values: JSON escapes what would end it."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, **values}, ensure_ascii=True) + "\n"


def _append(path: Path, lines: list[str]) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with open(number, "a", encoding="ascii") as file:
        mode = os.fstat(number).st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o007:
            raise PermissionError(0, f"others can reach it (mode {stat.S_IMODE(mode):04o}): `chmod 640 {path}`")
        file.write("".join(lines))
