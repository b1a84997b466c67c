"""Standard output and error as people and pipes see them: results to one, progress and notes to the other."""

from __future__ import annotations

import sys
from typing import IO

from herder.core import machine
from herder.core.errors import UsageError


def coloured(stream: IO[str]) -> bool:
    """Whether stream is a terminal whose user has not asked for plain text."""
    return stream.isatty() and not machine.no_colour()


def styled(text: str, code: str, stream: IO[str] | None = None) -> str:
    """text in an ANSI style ("1" bold, "2" dim) where stream (standard output) shows styles."""
    return f"\x1b[{code}m{text}\x1b[0m" if coloured(stream or sys.stdout) else text


# Control characters as their pictures (U+2400 and up), but for tab and newline; the second set (C1) has none.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def harmless(text: str, stream: IO[str] | None = None) -> str:
    """text as it is for a file or a pipe; for a terminal without the characters that would control it.

    What a model writes comes from strangers: it must not move the cursor, set the clipboard or rename the window.
    """
    return text.translate(_PICTURES) if (stream or sys.stdout).isatty() else text


def note(text: str) -> None:
    """A line for the user beside the result."""
    print(styled(f"herder: {text}", "2", sys.stderr), file=sys.stderr, flush=True)


def width() -> int:
    """Columns of the terminal, 80 where there is none; at most 100, beyond which lines are hard to read."""
    import shutil

    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def print_json(value: object) -> None:
    """One JSON document on standard output; text stays readable, not escaped."""
    import json

    print(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def table(headings: list[str], rows: list[list[str]], right: frozenset[int] = frozenset()) -> None:
    """Columns as wide as they need to be; headings bold on a terminal. right: columns set flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in pairs).rstrip()

    print(styled(line(headings), "1"))
    for row in rows:
        print(line(row))


def read_standard_input() -> str:
    """All of standard input as text. Raises UsageError where it is not UTF-8."""
    return _decoded(sys.stdin.buffer.read(), "standard input")


def read_file(path: str) -> str:
    """A UTF-8 file's text, newlines as they are; - is standard input. Raises UsageError."""
    if path == "-":
        return read_standard_input()
    try:
        with open(path, "rb") as file:
            return _decoded(file.read(), path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UsageError(f"{where} is not UTF-8 text: byte {byte:#04x} at position {error.start}") from None
