"""GGUF files byte by byte, so that tests can lie in any field. Not the oracle: that is the gguf package."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

U32, BOOL, STRING, ARRAY, U64 = 4, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def text_key(name: str, value: str | bytes) -> bytes:
    return key(name, STRING, string(value))


def u32_key(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def array_key(name: str, kind: int, count: int, items: bytes) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, count) + items)


def tensor(
    name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, dimensions: int | None = None
) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


@dataclass
class File:
    keys: list[bytes] = field(default_factory=lambda: [text_key("general.architecture", "llama")])
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = bytes(1024)
    magic: bytes = b"GGUF"
    version: bytes = struct.pack("<I", 3)
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32

    def build(self, **changes: Any) -> bytes:
        for name, value in changes.items():
            setattr(self, name, value)
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        keys = len(self.keys) if self.key_count is None else self.key_count
        head = self.magic + self.version + struct.pack("<QQ", tensors, keys) + b"".join(self.keys + self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data
