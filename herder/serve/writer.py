"""A thread that writes to disk for the event loop: what has come meanwhile in one go, awaited until written."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Waiting = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]

KEEP = 10_000  # items that a failing disk may leave behind in memory


class Writer(Generic[T]):
    """write: gets the items in the order in which they came; blocks; raises OSError when the disk does not take them.

    Nobody waits for anybody else's disk: while one group is written the next one collects, so a write is one commit
    however many requests end at once. What waits is bounded by the requests in flight, as each waits for its own item.
    A write that fails is logged, holds nobody up, and is tried again with the next one; past KEEP items the oldest go.
    """

    def __init__(self, write: Callable[[list[T]], None], name: str) -> None:
        self._write, self._name = write, name
        self._changed = threading.Condition()
        self._items: list[T] = []
        self._waiting: list[Waiting] = []
        self._closed = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> asyncio.Future[None]:
        """Hands an item over at once, awaited or not; the future is done when it has been written, or could not be."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._changed:
            if self._closed:
                raise AssertionError(f"{self._name} is closed")
            self._items.append(item)
            self._waiting.append((loop, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Writes what is left and ends the thread. Blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        left: list[T] = []  # by a write that failed
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                items, self._items = left + self._items, []
                waiting, self._waiting = self._waiting, []
                closed = self._closed
            left = self._attempt(items) if items else []
            for loop, future in waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_finish, future)
            if closed:
                return

    def _attempt(self, items: list[T]) -> list[T]:
        """What is left to write."""
        try:
            self._write(items)
        except Exception as error:
            lost = len(items) - KEEP
            if not self._failed or lost > 0:
                end = f"; the oldest {lost} are lost" if lost > 0 else "; they are kept and tried again"
                logging.getLogger(__name__).error("%s: %d items not written: %s%s", self._name, len(items), error, end)
            self._failed = True
            return items[-KEEP:]
        self._failed = False
        return []


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
