"""A tensor that is to be written: its name in the new file, its shape, and its bytes, made while they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from herder.core.errors import StorageError
from herder.formats.table import Format

Advance = Callable[[int], None]  # called with the number of bytes just written


@dataclass(frozen=True, slots=True)
class Output:
    """shape: row-major, the last dimension fastest. pieces() gives the bytes in order, each time anew."""

    name: str
    format: Format
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview | bytes]]

    @property
    def bytes(self) -> int:
        cols = self.shape[-1] if self.shape else 1
        return self.format.row_bytes(cols) * math.prod(self.shape[:-1])


def write_pieces(file: BinaryIO, output: Output, advance: Advance) -> None:
    """Writes the tensor's bytes. Raises StorageError when they are not as many as its shape says."""
    written = 0
    for piece in output.pieces():
        file.write(piece)
        size = memoryview(piece).nbytes
        written += size
        advance(size)
    if written != output.bytes:
        raise StorageError(f"tensor {output.name} gave {written} bytes, not {output.bytes}: nothing was written")
