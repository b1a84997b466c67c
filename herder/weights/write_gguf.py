"""GGUF version 3, written: metadata and tensors, one tensor at a time. The layout is gguf.py's."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from herder.weights.gguf import DEFAULT_ALIGNMENT, MAGIC
from herder.weights.output import Advance, Output, write_pieces

VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_ELEMENTS = {"i": _I32, "I": _U32, "f": _F32}


def write_gguf(file: BinaryIO, metadata: Mapping[str, Any], outputs: Sequence[Output], advance: Advance) -> None:
    """Writes a whole GGUF file.

    metadata values: bool, str, int (u32), float (f32), array of "i", "I" or "f", a list of bool, or a list of str or
    bytes (strings, which need not be UTF-8).
    """
    header = bytearray(struct.pack("<4sIQQ", MAGIC, VERSION, len(outputs), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + _value(value)
    offset = 0
    for output in outputs:
        header += _string(output.name) + struct.pack("<I", len(output.shape))
        header += b"".join(struct.pack("<Q", size) for size in reversed(output.shape))
        header += struct.pack("<IQ", output.format.id, offset)
        offset += _aligned(output.bytes)
    file.write(header + bytes(-len(header) % DEFAULT_ALIGNMENT))
    for output in outputs:
        write_pieces(file, output, advance)
        file.write(bytes(_aligned(output.bytes) - output.bytes))


def gguf_bytes(metadata: Mapping[str, Any], outputs: Sequence[Output]) -> int:
    """About the size of the file: the data, and what the metadata takes."""
    header = sum(len(key) + len(_value(value)) + 16 for key, value in metadata.items())
    return header + sum(_aligned(output.bytes) + 128 for output in outputs)


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """The u32 type and the value."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str | bytes):
        return struct.pack("<I", _STRING) + _string(value)
    head = struct.pack("<I", _ARRAY)
    if isinstance(value, array):
        return head + struct.pack("<IQ", _ELEMENTS[value.typecode], len(value)) + value.tobytes()
    if value and all(isinstance(item, bool) for item in value):
        return head + struct.pack("<IQ", _BOOL, len(value)) + bytes(value)
    return head + struct.pack("<IQ", _STRING, len(value)) + b"".join(map(_string, value))
