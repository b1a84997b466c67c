"""What a caller holds while its request runs: an iterator of events, for threads or for asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from queue import SimpleQueue
from typing import TYPE_CHECKING

from herder.core.request import Event, Finished

if TYPE_CHECKING:
    import asyncio


class Stream:
    """Iterates over the events of one request; the last one is Finished.

    Leaving early (abort(), the end of a `with` block, or dropping the last reference) aborts the request, so that an
    abandoned stream holds no pages.
    """

    def __init__(self) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._abort: Callable[[], None] | None = None
        self.finished: Finished | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        if self.finished is not None:
            raise StopIteration
        event = self._events.get()
        if isinstance(event, Finished):
            self.finished = event
        return event

    def abort(self) -> None:
        """Asks the engine to stop; Finished with ABORT follows unless the request has just ended by itself."""
        if self._abort is not None and self.finished is None:
            self._abort()

    def result(self) -> tuple[list[Event], Finished]:
        """Waits for the end: the events still to come, and the last one."""
        events: list[Event] = [event for event in self if not isinstance(event, Finished)]
        assert self.finished is not None
        return events, self.finished

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def __del__(self) -> None:
        self.abort()


class AsyncStream:
    """The same for `async for`, on the event loop that submitted the request."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._abort: Callable[[], None] | None = None
        self._cached: Callable[[], int] | None = None
        self.finished: Finished | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache: right from the first token on, 0 before."""
        return 0 if self._cached is None else self._cached()

    def take(self) -> list[Event]:
        """The events that have come and were not read yet; possibly none."""
        events = list(self._events)
        self._events.clear()
        if events and isinstance(events[-1], Finished):
            self.finished = events[-1]
        return events

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        if self.finished is not None:
            raise StopAsyncIteration
        while not self._events:
            assert self._waiter is None, "two readers of one stream"
            self._waiter = self._mailbox.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        if isinstance(event, Finished):
            self.finished = event
        return event

    def abort(self) -> None:
        """Asks the engine to stop; Finished with ABORT follows unless the request has just ended by itself."""
        if self._abort is not None and self.finished is None:
            self._abort()

    async def result(self) -> tuple[list[Event], Finished]:
        """Waits for the end: the events still to come, and the last one."""
        events: list[Event] = [event async for event in self if not isinstance(event, Finished)]
        assert self.finished is not None
        return events, self.finished

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.abort()

    def __del__(self) -> None:
        self.abort()

    def wake(self) -> None:
        """Ends a wait in ready(), with or without an event. From the event loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _deliver(self, event: Event) -> None:
        self._events.append(event)
        self.wake()


async def ready(streams: Collection[AsyncStream]) -> None:
    """Waits until one of these streams, all of one event loop and none finished, has an event to take() or is woken."""
    waiter: asyncio.Future[None] | None = None
    for stream in streams:
        if stream._events:
            return
        waiter = waiter or stream._mailbox.loop.create_future()
    if waiter is None:
        return
    for stream in streams:
        assert stream._waiter is None, "two readers of one stream"
        stream._waiter = waiter
    try:
        await waiter
    finally:
        for stream in streams:
            stream._waiter = None


class Mailbox:
    """Carries events from the engine's thread to one asyncio loop.

    A step of 32 sequences makes 32 events but wakes the loop once: call_soon_threadsafe costs a system call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._posted: deque[tuple[Callable[[Event], None], Event]] = deque()
        self._awake = False

    def post(self, deliver: Callable[[Event], None], event: Event) -> None:
        """From the engine's thread. Raises RuntimeError when the loop is closed."""
        self._posted.append((deliver, event))
        if not self._awake:
            self._awake = True
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                self._awake = False
                self._posted.clear()
                raise

    def _drain(self) -> None:
        self._awake = False  # before reading: what is posted from now on wakes the loop again
        posted = self._posted
        while posted:
            deliver, event = posted.popleft()
            deliver(event)
