"""One connection's bounds before any request is known: how long its head may be, and how long it may take to come."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from herder.serve.dialect import Problem

HEAD = 64 * 2**10  # bytes of a request's line and headers
PATIENCE = 30.0  # seconds for them to arrive


class Bounded(HttpToolsProtocol):
    """uvicorn's connection over llhttp, which by itself reads a head of any size for any time."""

    _head: int | None = 0  # bytes of the head that is being read; None within a body, and between requests
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > HEAD and not self.transport.is_closing():
                self.send_400_response(f"The head of the request is longer than {HEAD} bytes.")

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP has no path that would say which vendor's client sent it: JSON, in OpenAI's shape."""
        from herder.serve.dialects.openai_error import body

        document = json.dumps(body(Problem("invalid", msg))).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(document)}\r\nconnection: close\r\n\r\n"
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head.encode() + document)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head = None
        self._stop()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head = 0
        self._stop()
        self._clock = asyncio.get_running_loop().call_later(PATIENCE, self.transport.close)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
