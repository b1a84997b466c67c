"""The server's log: one JSON object a line on standard error. Prompts are in it only when they were asked for."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from herder.serve.exchange import Exchange


class Log:
    """requests: a line for each request."""

    def __init__(self, *, requests: bool = True, out: TextIO | None = None) -> None:
        self._requests, self._out = requests, out

    def event(self, event: str, **values: Any) -> None:
        """Something worth a line: loaded, unloaded, failed, draining, stopped."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **values}, ensure_ascii=False, default=str)
        out = self._out or sys.stderr
        try:
            out.write(line + "\n")
            out.flush()
        except (OSError, ValueError):  # whoever read the log has gone; serving goes on
            pass

    def request(self, method: str, exchange: Exchange) -> None:
        if not self._requests:
            return
        usage = exchange.usage()
        values: dict[str, Any] = {
            "id": exchange.id,
            "method": method,
            "path": exchange.path,
            "status": usage.status,
            "seconds": round(usage.seconds, 6),
        }
        if exchange.principal.key:
            values["key"] = exchange.principal.key
        if exchange.model:
            values |= {
                "model": exchange.model,
                "stream": exchange.stream,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
            }
        if exchange.prompt is not None:
            values["prompt"] = exchange.prompt
        self.event("request", **values)

    def image(self, exchange: Exchange, hosts: Sequence[str], outcome: str, seconds: float, size: int) -> None:
        """An image that a request named by URL. hosts: that were asked, one after the other. size: in bytes."""
        if self._requests:
            values = {"id": exchange.id, "hosts": hosts, "outcome": outcome, "seconds": round(seconds, 6)}
            self.event("image", **values, bytes=size)

    def failure(self, exchange: Exchange, error: BaseException) -> None:
        """A bug of ours, or the engine's: with the traceback that the client does not get."""
        trace = "".join(traceback.format_exception(error))
        self.event("error", id=exchange.id, path=exchange.path, model=exchange.model, error=repr(error), trace=trace)
