"""Safetensors: one file -> named tensors in a mapping. No copy of tensor data is made.

Layout: u64 little-endian length of the header; the header, a JSON object {name: {"dtype", "shape", "data_offsets":
[begin, end]}} and perhaps "__metadata__", padded with spaces; then the data, which the offsets count from. The tensors
must cover the data without gap or overlap. Source: README.md of the safetensors project. Our limit on the header is
16 MiB (theirs is 100): room for 80,000 tensors.

The header is read and not mapped, so that a file truncated meanwhile gives a short read and not a SIGBUS.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import short
from herder.weights.mapping import MappedFile

MAX_HEADER = 16 << 20  # bytes
MAX_DIMENSIONS = 8

# Bits per element of every dtype the format has; which of them a model may use is the caller's business.
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """shape: row-major, the last dimension fastest. offset: of the first byte, from the file's start; any alignment."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


class SafeTensors:
    """One safetensors file, its tensors in the order of their data.

    Raises ModelNotFound, ModelFileError (damaged or lying), UnsupportedModel (a dtype that is not known here).
    """

    def __init__(self, path: Path) -> None:
        if sys.byteorder != "little":
            raise UnsupportedModel("this machine is big-endian, and model files are little-endian: use another machine")
        self.path = path
        self.file = MappedFile(path)
        try:
            self.tensors = self._parse()
        except BaseException:
            self.file.close()
            raise

    def address(self, tensor: SafeTensor) -> int:
        return self.file.address(tensor.offset)

    def view(self, tensor: SafeTensor) -> memoryview:
        return self.file.view(tensor.offset, tensor.bytes)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> SafeTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parse(self) -> list[SafeTensor]:
        prefix = self.file.read(0, 8)
        if len(prefix) < 8:
            self._fail(f"is {self.file.size} bytes long, too short for a header")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER or length + 8 > self.file.size:
            self._fail(f"says its header is {length} bytes long (at most {min(MAX_HEADER, self.file.size - 8)})")
        raw = self.file.read(8, length)
        if len(raw) < length:
            self._fail("became shorter while it was read")
        header = parse_object(raw, self.path)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            self._fail(f"has __metadata__ {short(metadata)}, not an object of strings")
        base, end = 8 + length, self.file.size
        tensors = sorted((self._tensor(name, info, base) for name, info in header.items()), key=_place)
        if not tensors:
            self._fail("holds no tensors")
        if tensors[0].offset != base:
            self._fail(f"has {tensors[0].offset - base} bytes before its first tensor {short(tensors[0].name)}")
        for before, after in pairwise(tensors):
            if before.offset + before.bytes != after.offset:
                what = "overlap" if before.offset + before.bytes > after.offset else "have a gap between them"
                self._fail(f"has tensors {short(before.name)} and {short(after.name)}, which {what}")
        last = tensors[-1].offset + tensors[-1].bytes
        if last != end:
            self._fail(f"should end at byte {last}, after tensor {short(tensors[-1].name)}, but ends at {end}")
        return tensors

    def _tensor(self, name: str, info: Any, base: int) -> SafeTensor:
        where = f"has tensor {short(name)}"
        if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
            self._fail(f"{where} described by {short(info)}, not by dtype, shape and data_offsets")
        dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            raise UnsupportedModel(f"{self.path} {where} of dtype {short(dtype)}, which is not known here")
        if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
            self._fail(f"{where} with shape {short(shape)}")
        if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            self._fail(f"{where} with data_offsets {short(offsets)}")
        begin, stop = offsets
        if base + stop > self.file.size:
            self._fail(f"{where} that ends at byte {base + stop}, but the file ends at {self.file.size}")
        bits = DTYPE_BITS[dtype] * math.prod(shape)
        if bits % 8 or bits // 8 != stop - begin:
            self._fail(f"{where} of {dtype} {short(shape)}, which is not {stop - begin} bytes")
        return SafeTensor(name, dtype, tuple(shape), base + begin, stop - begin)

    def _fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.path} {problem}: the file is damaged, download it again")


def parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises ModelFileError."""
    try:
        value = json.loads(raw, object_pairs_hook=_unique)
    except RecursionError:
        raise ModelFileError(f"{path}: JSON nested too deep: the file is damaged, download it again") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise ModelFileError(f"{path}: not valid JSON ({short(str(error))}): download it again") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: holds {short(value)}, not a JSON object: download it again")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {short(name)} appears twice")
            seen.add(name)
    return result


def _naturals(values: Any) -> bool:
    """A list of whole numbers from 0 to 2**63 - 1."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _place(tensor: SafeTensor) -> tuple[int, int]:
    return tensor.offset, tensor.bytes  # an empty tensor sorts before the one that begins at the same byte
