"""Markdown shown while it is being written.

What is finished is printed for good, block by block; only the block under way is redrawn. So a long answer costs no
more per token than a short one, and it scrolls like any other text.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_PAUSE = 1 / 12  # seconds between redraws, at least
_SHARE = 20  # and at least so many times what a redraw takes: the cores belong to the model


def finished(text: str) -> int:
    """How much of text is blocks that nothing to come can change: up to the last empty line outside of a code fence.

    Lists are one block however many empty lines they have, so that their numbers go on.
    """
    fence = ""
    end = position = 0
    in_list = False
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        marker = bare[:3]
        if fence:
            fence = "" if marker == fence and bare == fence else fence
        elif marker in ("```", "~~~"):
            fence = marker
        elif not bare and line.endswith("\n"):
            if not in_list:
                end = position + len(line)
        elif not line.startswith((" ", "\t")) and line.endswith("\n"):  # "1" may still become "1. item"
            if in_list and not _is_item(bare):
                end = position  # an unindented line that is no item ends the list
            in_list = _is_item(bare)
        position += len(line)
    return end


def _is_item(line: str) -> bool:
    number, dot, rest = line.partition(". ")
    return line.startswith(("- ", "* ", "+ ")) or (bool(dot) and number.isdigit() and bool(rest))


class _Tail:
    """The end of a Markdown text, as many lines as the screen has room for."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self.text), options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


class MarkdownView:
    """A context in which write() shows pieces of an answer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._next = 0.0  # when to redraw

    def __enter__(self) -> MarkdownView:
        self._live.start()
        return self

    def write(self, piece: str) -> None:
        self._open += piece
        end = finished(self._open)
        if end:
            self._settle(self._open[:end])
            self._open = self._open[end:]
        now = time.monotonic()
        if now >= self._next:
            self._live.update(_Tail(self._open), refresh=True)
            after = time.monotonic()
            self._next = after + max(_PAUSE, _SHARE * (after - now))

    def _settle(self, text: str) -> None:
        """Prints blocks above the part that is redrawn."""
        if text.strip():
            self._live.update("", refresh=True)
            self._console.print(Markdown(text))
            self._console.print()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.update("", refresh=True)
        self._live.stop()
        if self._open.strip():
            self._console.print(Markdown(self._open))
