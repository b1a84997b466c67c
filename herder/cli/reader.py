"""What the user of a chat types: lines from a terminal with editing and history, or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from herder.core import machine

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

BLOCK = '"""'


class Reader(Protocol):
    def read(self) -> str:
        """One message. Raises EOFError at the end, KeyboardInterrupt when the user gave a line up."""
        ...


def unfinished(text: str) -> bool:
    """Whether more lines follow: a backslash at the end, or a block of three quotes that is still open."""
    return text.endswith("\\") or text.count(BLOCK) % 2 == 1


def message(text: str) -> str:
    """What was meant: continuation backslashes and the quotes around a block are not part of it."""
    text = text.replace("\\\n", "\n").strip()
    if text.startswith(BLOCK) and text.endswith(BLOCK) and len(text) >= 2 * len(BLOCK):
        text = text[len(BLOCK) : -len(BLOCK)]
    return text.strip("\n")


class LineReader:
    """Standard input that is no terminal: a line is a message, with the same continuation rules."""

    def read(self) -> str:
        text = ""
        while True:
            line = sys.stdin.readline()
            if not line:
                if text:
                    return message(text.rstrip("\\"))
                raise EOFError
            text += line.rstrip("\n")
            if not unfinished(text):
                return message(text)
            text += "\n"


class TerminalReader:
    """A terminal. toolbar: the line at the bottom. commands: completed after a slash."""

    def __init__(self, toolbar: Callable[[], str], commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.output.color_depth import ColorDepth

        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            multiline=True,
            key_bindings=_bindings(),
            prompt_continuation="  ",
            bottom_toolbar=toolbar,
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            color_depth=ColorDepth.DEPTH_1_BIT if machine.no_colour() else None,
        )

    def read(self) -> str:
        return message(self._session.prompt("> "))


def _bindings() -> KeyBindings:
    """Enter sends, unless more is to follow; Alt-Enter always makes a new line."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> History:
    """What was typed before, in a file that only its user may read; in memory where there can be no file."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = machine.state_home() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
