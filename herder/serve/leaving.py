"""Clients that go away: what runs for them is cancelled at once, whether they were being streamed to or not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive


class Gone(Exception):
    """The client has disconnected: there is nobody to answer."""


class Leaving:
    """Cancels the block when the client disconnects, which then raises Gone. The body must have been read before.

    answered(), before the last message is sent: a client that goes away after that has its answer.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> Leaving:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._watcher.cancel()
        if self._gone and not self._task.uncancel() and (error is None or isinstance(error, asyncio.CancelledError)):
            raise Gone from None

    def answered(self) -> None:
        self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()
