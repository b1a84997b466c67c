"""How a test and the engine's thread wait for each other: an executor with a gate, and a condition that comes true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from herder.core.batch import Batch, Limits, Output
from herder.runtime.fake import FakeExecutor


class GatedExecutor(FakeExecutor):
    """Waits in result() at a gate, which is open at first. waits: the batches that do; all, where it is not given.
    entered: set from the first of them on. An interrupted batch raises RuntimeError."""

    def __init__(self, limits: Limits, waits: Callable[[Batch], bool] = lambda batch: True) -> None:
        super().__init__(limits)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.interrupted = False
        self._waits = waits

    def result(self, ticket: Any) -> list[Output]:
        if self._waits(ticket.batch):
            self.entered.set()
            assert self.gate.wait(30)
            if self.interrupted:
                raise RuntimeError("interrupted")
        return super().result(ticket)

    def interrupt(self) -> None:
        self.interrupted = True
        self.gate.set()


def eventually(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")
