"""Quantized tensors in real safetensors files, and what the reader makes of them. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

from herder.formats import reference
from herder.weights.quantized.methods import read_quantized
from herder.weights.quantized.parts import Part
from herder.weights.safetensors import SafeTensors

_WORDS = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "I64": "int64", "I8": "int8", "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"}


@dataclass(frozen=True)
class Bits:
    """An array whose bits are numbers of a dtype that NumPy lacks."""

    dtype: str
    array: NDArray[Any]


Tensors = Mapping[str, NDArray[Any] | Bits]


def bf16(values: NDArray[np.float32]) -> Bits:
    return Bits("BF16", bf16_bits(values))


def bf16_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Rounded to nearest even, by integers: what lies above half a unit goes up, and half of it to the even one."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept, rest = raw >> 16, raw & 0xFFFF
    return (kept + ((rest > 0x8000) | ((rest == 0x8000) & (kept & 1 == 1)))).astype(np.uint16)


def bf16_values(values: NDArray[Any]) -> NDArray[np.float32]:
    """float32 numbers after a rounding to BF16."""
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32)


def write(path: Path, tensors: Tensors) -> None:
    specs, alive = {}, []
    for name, value in tensors.items():
        bits = value if isinstance(value, Bits) else Bits(_DTYPES[value.dtype.name], value)
        array = np.ascontiguousarray(bits.array)
        alive.append(array)
        specs[name] = TensorSpec(
            dtype=_WORDS[bits.dtype], shape=bits.array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
        )
    serialize_file(specs, path, {"format": "pt"})


@dataclass(frozen=True)
class Matrix:
    format: str
    values: NDArray[np.float32]


def read(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    dtype: str | None = "bfloat16",
    biases: bool = False,
) -> tuple[dict[str, Matrix], frozenset[str]]:
    """What the reader makes of these tensors: name -> format and numbers; and the names of those it used."""
    path = directory / "model.safetensors"
    write(path, tensors)
    with SafeTensors(path) as shard:
        parts = {info.name: Part(shard, info) for info in shard.tensors}
        made, taken = read_quantized("config.json", config, parts, dtype=dtype, biases=biases)
        matrices = {}
        for matrix in made:
            raw = matrix.make().view(0, matrix.bytes)
            values = reference.unpack(matrix.format, raw, matrix.rows, matrix.cols)
            matrices[matrix.name] = Matrix(matrix.format.name, values)
        return matrices, taken


def pack_stream(rows: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """(n, words) from (n, count) integers: element i of a row is bits [i * bits, (i + 1) * bits) of one long integer,
    little-endian. Written with Python's integers, from the words of the layouts' descriptions."""
    count = math.ceil(rows.shape[1] * bits / 32)
    packed = []
    for row in rows:
        stream = sum(int(value) << (bits * i) for i, value in enumerate(row))
        packed.append(np.frombuffer(stream.to_bytes(4 * count, "little"), "<i4"))
    return np.stack(packed)
