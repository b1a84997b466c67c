"""A transfer's progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from herder.cli.terminal import note
from herder.core.sizes import bytes_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

# Seconds before anything is shown, on a terminal and elsewhere: what is over by then needs no word.
_BAR_AFTER, _LINE_AFTER = 0.5, 3.0
_LINE_EVERY = 10.0


class Transfer:
    """Callable as herder.weights.storage.Progress; costs nothing when it is not called."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._said = 0.0
        self._first: float | None = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        self._first = self._first if self._first is not None else now
        if sys.stderr.isatty():
            if now - self._first > _BAR_AFTER:
                self._bar(what, done, total)
        elif now - self._first > _LINE_AFTER and (what != self._what or now - self._said > _LINE_EVERY):
            self._what, self._said = what, now
            amount = f": {bytes_text(done)} of {bytes_text(total)}" if total and done else ""
            amount = amount or (f": {bytes_text(total)}" if total else "")
            note(f"{what}{amount}")

    def _bar(self, what: str, done: int, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bars.start()
        if self._task is None or what != self._what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._what = self._bars.add_task(what, total=total), what
        self._bars.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None


@contextlib.contextmanager
def transfer() -> Iterator[Transfer]:
    """A Transfer whose bar is gone at the end, however it ends."""
    shown = Transfer()
    try:
        yield shown
    finally:
        shown.stop()


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Counter]:
    """A bar for steps that are not bytes; nothing where standard error is no terminal."""
    counter = Counter(what, total)
    try:
        yield counter
    finally:
        counter.stop()


class Counter:
    """Callable with how many steps are done and a text shown beside the bar."""

    def __init__(self, what: str, total: int) -> None:
        self._bars: Bars | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[beside]}"), console=Console(stderr=True))
            self._task = self._bars.add_task(what, total=total, beside="")
            self._bars.start()

    def __call__(self, done: int, beside: str = "") -> None:
        if self._bars is not None:
            self._bars.update(self._task, completed=done, beside=beside)

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
