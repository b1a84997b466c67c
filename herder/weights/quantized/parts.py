"""The stored tensors of a quantized checkpoint by name: checked when taken, read as arrays without a copy.

NumPy has neither BF16 nor the eight-bit floats: their arrays are the raw bits, and `floats` decodes them. E4M3 and E8M0
are those of the OCP specifications OFP8 and Microscaling (E4M3 as "FN": no infinities, NaN where all bits are set).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.core.errors import ModelFileError
from herder.formats.floats import unpack_bf16
from herder.weights.safetensors import SafeTensor, SafeTensors

Array = NDArray[Any]
Floats = NDArray[np.float32]
Integers = NDArray[np.int16]

FLOATS = ("F32", "F16", "BF16")
_NUMPY = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E8M0": "u1", "U8": "u1", "I8": "i1", "I32": "<i4",
    "I64": "<i8", "BOOL": "u1",
}  # fmt: skip
_NAN = {"F8_E4M3": np.uint8(0x7F), "F8_E8M0": np.uint8(0xFF)}  # bits that all are set in a NaN only


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor."""

    shard: SafeTensors
    info: SafeTensor

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def where(self) -> str:
        return f"{self.shard.path}: tensor {self.info.name}"

    def raw(self) -> NDArray[np.uint8]:
        """The bytes, a view of the mapping."""
        return np.frombuffer(self.shard.view(self.info), np.uint8)

    def array(self) -> Array:
        """A view of the mapping in the tensor's shape; BF16, E4M3 and E8M0 as their bits."""
        return np.frombuffer(self.shard.view(self.info), _NUMPY[self.info.dtype]).reshape(self.info.shape)

    def release(self) -> None:
        """Drops the mapped pages from this process's memory, once a matrix has been made of them."""
        self.shard.file.release(self.info.offset, self.info.bytes)

    def floats(self, values: Array) -> Floats:
        """Values of `array()`, or a slice of them, as numbers. Raises ModelFileError for a NaN in eight bits."""
        return decode(self.where, self.info.dtype, values)


def decode(where: str, dtype: str, values: Array) -> Floats:
    """Stored values of a floating-point dtype as float32, which holds all of them exactly."""
    if dtype == "BF16":
        return unpack_bf16(np.ascontiguousarray(values).view(np.uint8)).reshape(values.shape)
    if dtype in _NAN:
        table = _eight_bits(dtype)
        if values.size and (values & _NAN[dtype]).max() == _NAN[dtype]:
            raise ModelFileError(f"{where} holds NaN: the file is damaged, download it again")
        return np.take(table, values)
    plain: Floats = values.astype(np.float32)
    return plain


@functools.cache
def _eight_bits(dtype: str) -> Floats:
    """The 256 numbers."""
    codes = np.arange(256)
    if dtype == "F8_E8M0":  # a power of two; 2 ** -127 is a subnormal float32
        powers = np.ldexp(np.float64(1), codes - 127)
        powers[255] = np.nan
        return np.asarray(powers, np.float32)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(mantissa * 1.0, -9))
    magnitude[codes & 127 == 127] = np.nan
    numbers: Floats = np.where(codes < 128, magnitude, -magnitude).astype(np.float32)
    return numbers


class Checkpoint:
    """The stored tensors of all files. Remembers which were taken; the rest are tensors like any other."""

    def __init__(self, where: str, parts: Mapping[str, Part], biases: bool) -> None:
        """biases: whether the model's configuration asks for biases of linear layers."""
        self.where = where
        self.taken: set[str] = set()
        self._parts = parts
        self._biases = biases

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def modules(self, suffix: str) -> list[str]:
        """The modules that have a tensor of this suffix (`.qweight`), in the files' order."""
        return [name[: -len(suffix)] for name in self._parts if name.endswith(suffix)]

    def dtype(self, name: str) -> str:
        """The dtype of a tensor, or nothing when there is none of this name."""
        return self._parts[name].info.dtype if name in self._parts else ""

    def take(self, name: str, dtypes: Iterable[str], *shapes: tuple[int, ...]) -> Part:
        """The tensor of this name, which must have one of the dtypes and, where given, one of the shapes."""
        part = self._parts.get(name)
        if part is None:
            raise ModelFileError(
                f"{self.where}: tensor {name} is missing beside the others of its module: get it again"
            )
        if part.info.dtype not in (dtypes := tuple(dtypes)):
            raise ModelFileError(f"{part.where} is stored as {part.info.dtype}; expected {' or '.join(dtypes)}")
        if shapes and part.shape not in shapes:
            wanted = " or ".join(map(_text, shapes))
            raise ModelFileError(
                f"{part.where} has shape {_text(part.shape)}, but quantization_config and the tensors beside it ask "
                f"for {wanted}: weights and configuration disagree"
            )
        self.taken.add(name)
        return part

    def take_matrix(self, name: str, dtypes: Iterable[str]) -> Part:
        """The tensor of this name, of two dimensions and not empty."""
        part = self.take(name, dtypes)
        if len(part.shape) != 2 or min(part.shape) < 1:
            raise ModelFileError(f"{part.where} has shape {_text(part.shape)}: expected a matrix")
        return part

    def take_groups(self, name: str, cols: int, count: int) -> NDArray[np.intp]:
        """A g_idx tensor: the group of each column, from 0 to count - 1."""
        part = self.take(name, ("I32", "I64"), (cols,))
        groups = part.array().astype(np.intp)
        least, greatest = int(groups.min()), int(groups.max())
        if least < 0 or greatest >= count:
            raise ModelFileError(
                f"{part.where} names group {least if least < 0 else greatest}, but there are {count}: the file is "
                "damaged, download it again"
            )
        return groups

    def drop_zero_bias(self, module: str) -> None:
        """Quantizers give a bias of zeros to layers that have none: takes it where the configuration knows none."""
        part = self._parts.get(module + ".bias")
        if not self._biases and part is not None and part.info.dtype in FLOATS and not part.array().any():
            self.taken.add(part.name)

    def drop(self, *names: str) -> None:
        """Takes those tensors of these names that are there, whose values change nothing about the weights."""
        self.taken.update(name for name in names if name in self._parts)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a scalar"
