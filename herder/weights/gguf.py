"""GGUF, versions 2 and 3: one file -> metadata and tensors in a mapping. No copy of tensor data is made.

Layout, little endian: "GGUF", u32 version, u64 tensor count, u64 metadata count; then the metadata (string key, u32
type, value), then the tensor infos (string name, u32 dimensions, u64 each, u32 type, u64 offset), then the data, which
starts at the next multiple of `general.alignment` (32 unless given) and to which the offsets are relative. A string is
a u64 length and that many bytes. Source: docs/gguf.md of the ggml project.

The header is read, not mapped, so that a file truncated meanwhile gives a short read and not a SIGBUS. Every length
and count is checked against what is left of the file before anything is allocated for it. Strings may hold any bytes
(byte-level vocabularies do), so they are decoded as UTF-8 with `surrogateescape`, and
`s.encode("utf-8", "surrogateescape")` gives the file's bytes back.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, overload

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.formats.table import Format, format_by_id
from herder.weights.fields import short
from herder.weights.mapping import MappedFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_HEADER = 256 << 20  # bytes; a vocabulary of 200,000 tokens with 440,000 merges needs about 14 MiB
MAX_ITEMS = 1 << 22  # elements in one metadata array
MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 16
MAX_NAME = 1 << 16  # bytes in a key or a tensor name
MAX_DEPTH = 4  # arrays in arrays

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf\Z")
_U64 = struct.Struct("<Q").unpack_from

Value = Any  # bool | int | float | str | array | StringArray | list of Value


class StringArray(Sequence[str]):
    """An array of strings, found when the file is opened and decoded when first asked for."""

    def __init__(self, data: bytes, starts: Sequence[int]) -> None:
        self._data = data
        self._starts = starts  # of each u64 length, and one more: the end
        self._strings: list[str] | None = None

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.strings()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.strings())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str | bytes) and self.strings() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringArray({len(self)} strings)"

    def strings(self) -> list[str]:
        """All strings; undecodable bytes are surrogate escapes."""
        if self._strings is None:
            data = self._data
            self._strings = [data[a + 8 : b].decode("utf-8", "surrogateescape") for a, b in pairwise(self._starts)]
        return self._strings

    def raw(self) -> list[bytes]:
        """All strings as the file's bytes."""
        data = self._data
        return [data[a + 8 : b] for a, b in pairwise(self._starts)]


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """shape: as GGUF writes it, fastest dimension first: (cols, rows) of a matrix. offset: from the file's start."""

    name: str
    format: Format
    shape: tuple[int, ...]
    offset: int
    bytes: int


class GGUF:
    """One GGUF file. `metadata` maps each key to bool, int, float, str, array.array, StringArray or a list of these.

    Raises ModelFileError for a damaged or lying file, UnsupportedModel for a version, byte order or storage format that
    is not read here, ModelNotFound when there is no such file. Close it, or use it as a context manager.
    """

    def __init__(self, path: Path) -> None:
        if sys.byteorder != "little":
            raise UnsupportedModel("this machine is big-endian, and model files are little-endian: use another machine")
        self.path = path
        self.file = MappedFile(path)
        try:
            cursor = _Cursor(self.file)
            self.version, tensors, keys = _preamble(cursor)
            self.metadata: dict[str, Value] = dict(_metadata(cursor, keys))
            self.alignment = _alignment(cursor, self.metadata)
            self.tensors: list[GGUFTensor] = _tensors(cursor, tensors, self.alignment)
        except BaseException:
            self.file.close()
            raise

    def address(self, tensor: GGUFTensor) -> int:
        """Address of the tensor's first byte in the mapping."""
        return self.file.address(tensor.offset)

    def view(self, tensor: GGUFTensor) -> memoryview:
        """The tensor's bytes in the mapping."""
        return self.file.view(tensor.offset, tensor.bytes)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_parts(path: Path) -> list[GGUF]:
    """The GGUF file at `path` and, when it is the first of a split model, the parts beside it, in order.

    A split model is named `NAME-00001-of-00003.gguf`; its first part holds the metadata, and every part says its place
    in `split.no` and `split.count`. Raises ModelFileError naming the part that is missing or out of place.
    """
    first = GGUF(path)
    parts = [first]
    try:
        count = first.metadata.get("split.count", 1)
        if not isinstance(count, int) or count <= 1:
            return parts
        match = _PART.search(path.name)
        if match is None:
            raise ModelFileError(
                f"{path} is one of {count} parts, but its name is not like NAME-00001-of-{count:05d}.gguf: rename it"
            )
        stem = path.name[: match.start()]
        names = [f"{stem}-{i:05d}-of-{match[2]}.gguf" for i in range(1, int(match[2]) + 1)]
        if int(match[1]) != 1:
            raise ModelFileError(f"{path} is part {int(match[1])} of {count}: give the first, {names[0]}")
        if len(names) != count:
            raise ModelFileError(f"{path} says split.count = {count}, but its name says {match[2]}: download it again")
        for name in names[1:]:
            if not (path.parent / name).exists():
                raise ModelFileError(f"{path.parent / name} is missing (the model has {count} parts): download it too")
            parts.append(GGUF(path.parent / name))
        for i, part in enumerate(parts):
            if part.metadata.get("split.no") != i or part.metadata.get("split.count") != count:
                said = f"{short(part.metadata.get('split.no'))} of {short(part.metadata.get('split.count'))}"
                raise ModelFileError(
                    f"{part.path} says it is part {said}, counted from 0, but by its name {i} of {count}: rename it"
                )
        total = first.metadata.get("split.tensors.count")
        found = sum(len(part.tensors) for part in parts)
        if total is not None and total != found:
            raise ModelFileError(
                f"{path} says split.tensors.count = {short(total)}, but its parts hold {found}: download again"
            )
        return parts
    except BaseException:
        for part in parts:
            part.close()
        raise


class _Cursor:
    """Reads the header from the front, a window at a time, never past the end of the file or MAX_HEADER."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.data = b""
        self.pos = 0

    def fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.file.path}: {problem}: the file is damaged, download it again")

    def need(self, count: int, field: str) -> None:
        """Makes sure that `count` bytes can be read at `pos`; `field` is what they belong to."""
        end = self.pos + count
        if end <= len(self.data):
            return
        if end > self.file.size:
            self.fail(f"{field} needs {count} bytes at {self.pos}, but the file ends at {self.file.size}")
        if end > MAX_HEADER:
            self.fail(f"{field} makes the header larger than {MAX_HEADER >> 20} MiB")
        window = min(max(end, 2 * len(self.data), 1 << 20), self.file.size, MAX_HEADER)
        self.data += self.file.read(len(self.data), window - len(self.data))
        if end > len(self.data):
            self.fail(f"{field} needs {count} bytes at {self.pos}, but the file became shorter while it was read")

    def scalar(self, layout: str, field: str) -> Any:
        size = struct.calcsize(layout)
        self.need(size, field)
        (value,) = struct.unpack_from(layout, self.data, self.pos)
        self.pos += size
        return value

    def string(self, field: str, limit: int = MAX_HEADER) -> str:
        length = self.scalar("<Q", field)
        if length > limit:
            self.fail(f"{field} is {length} bytes long (at most {limit})")
        self.need(length, field)
        raw = self.data[self.pos : self.pos + length]
        self.pos += length
        return raw.decode("utf-8", "surrogateescape")

    def name(self, field: str, seen: set[str]) -> str:
        """A key or a tensor name: not empty, and not one of those seen before."""
        name = self.string(field, MAX_NAME)
        if not name:
            self.fail(f"{field} is empty")
        if name in seen:
            self.fail(f"{field}, {name!r}, appears twice")
        seen.add(name)
        return name

    def value(self, kind: int, field: str, depth: int = 0) -> Value:
        layout = _SCALARS.get(kind)
        if layout is not None:
            return self.scalar(layout, field)
        if kind == _STRING:
            return self.string(field)
        if kind == _BOOL:
            byte = self.scalar("<B", field)
            if byte > 1:
                self.fail(f"{field} is a bool with value {byte}")
            return bool(byte)
        if kind == _ARRAY:
            return self.array(field, depth)
        self.fail(f"{field} has value type {kind}, which GGUF does not have")

    def array(self, field: str, depth: int) -> Value:
        kind = self.scalar("<I", field)
        count = self.scalar("<Q", field)
        if count > MAX_ITEMS:
            self.fail(f"{field} has {count} elements (at most {MAX_ITEMS})")
        layout = _SCALARS.get(kind)
        if layout is not None:
            values = array({"<i": "i", "<I": "I"}.get(layout, layout[1]))
            size = count * values.itemsize
            self.need(size, field)
            values.frombytes(self.data[self.pos : self.pos + size])
            self.pos += size
            return values
        if kind == _STRING:
            return self.strings(count, field)
        if kind == _ARRAY and depth + 1 >= MAX_DEPTH:
            self.fail(f"{field} is nested deeper than {MAX_DEPTH} arrays")
        self.need(count * (1 if kind == _BOOL else 12), field)  # the least that count elements can take
        return [self.value(kind, field, depth + 1) for _ in range(count)]

    def strings(self, count: int, field: str) -> StringArray:
        """Walks from length to length; the strings are decoded later. This loop is most of the time opening takes."""
        self.need(8 * count, field)  # the least that count strings can take
        starts: list[int] = []
        append, length_at, pos = starts.append, _U64, self.pos
        while len(starts) < count:
            data = self.data
            try:
                for _ in range(count - len(starts)):
                    length = length_at(data, pos)[0]
                    append(pos)
                    pos += 8 + length
            except (struct.error, OverflowError):  # the next length lies behind the window
                self.pos = pos
                self.need(8, f"{field}[{len(starts)}]")
        append(pos)
        self.pos = pos
        self.need(0, field)  # the last string ends inside the file
        return StringArray(self.data, starts)


def _preamble(cursor: _Cursor) -> tuple[int, int, int]:
    """version, tensor count, metadata count."""
    path = cursor.file.path
    magic = cursor.file.read(0, 4)
    if magic != MAGIC:
        raise ModelFileError(f"{path} begins with {magic!r}, not {MAGIC!r}: it is not a GGUF file")
    cursor.pos = 4
    version = cursor.scalar("<I", "version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0 and version >> 24 in VERSIONS:
            raise UnsupportedModel(f"{path} is a big-endian GGUF file: use the little-endian one of the same model")
        raise UnsupportedModel(f"{path} is GGUF version {version}; supported are 2 and 3: convert it again")
    tensors = cursor.scalar("<Q", "tensor count")
    keys = cursor.scalar("<Q", "metadata count")
    if tensors > MAX_TENSORS:
        cursor.fail(f"tensor count is {tensors} (at most {MAX_TENSORS})")
    if keys > MAX_KEYS:
        cursor.fail(f"metadata count is {keys} (at most {MAX_KEYS})")
    return version, tensors, keys


def _metadata(cursor: _Cursor, count: int) -> Iterator[tuple[str, Value]]:
    seen: set[str] = set()
    for i in range(count):
        key = cursor.name(f"metadata key {i}", seen)
        yield key, cursor.value(cursor.scalar("<I", f"metadata {key!r}"), f"metadata {key!r}")


def _alignment(cursor: _Cursor, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        cursor.fail(f"general.alignment is {alignment!r}, not a power of two up to 1 MiB")
    return alignment


def _tensors(cursor: _Cursor, count: int, alignment: int) -> list[GGUFTensor]:
    infos = []
    seen: set[str] = set()
    for i in range(count):
        name = cursor.name(f"name of tensor {i}", seen)
        field = f"tensor {name!r}"
        dimensions = cursor.scalar("<I", field)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            cursor.fail(f"{field} has {dimensions} dimensions (1 to {MAX_DIMENSIONS})")
        shape = tuple(cursor.scalar("<Q", field) for _ in range(dimensions))
        infos.append((name, shape, cursor.scalar("<I", field), cursor.scalar("<Q", field)))
    base = -(-cursor.pos // alignment) * alignment
    tensors = [_tensor(cursor, base, alignment, *info) for info in infos]
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.bytes > after.offset:
            cursor.fail(f"tensors {before.name!r} and {after.name!r} overlap at byte {after.offset}")
    return tensors


def _tensor(
    cursor: _Cursor, base: int, alignment: int, name: str, shape: tuple[int, ...], format_id: int, offset: int
) -> GGUFTensor:
    field = f"tensor {name!r}"
    fmt = format_by_id(format_id, f"{cursor.file.path}: {field}")
    if min(shape) < 1:
        cursor.fail(f"{field} has shape {shape}")
    if not fmt.whole_blocks(shape[0]):
        cursor.fail(f"{field} has rows of {shape[0]} weights, which {fmt.name} stores in blocks of {fmt.block}")
    size = fmt.row_bytes(shape[0]) * math.prod(shape[1:])
    if offset % alignment:
        cursor.fail(f"{field} starts at {offset}, which is not a multiple of the alignment {alignment}")
    if base + offset + size > cursor.file.size:
        cursor.fail(
            f"{field} needs bytes {base + offset} to {base + offset + size}, but the file ends at {cursor.file.size}"
        )
    return GGUFTensor(name, fmt, shape, base + offset, size)
