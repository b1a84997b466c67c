"""Blocks of 32 weights with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Layouts as in ggml's ggml-common.h (block_q4_0 and its siblings), the rounding of `pack` as in its
quantize_row_*_ref. `_0` formats are symmetric, w = d * (q - offset); `_1` formats have a minimum, w = d * q + m.
Four-bit integers lie two in a byte: the low nibbles are weights 0 to 15, the high ones 16 to 31. Five-bit ones keep
their highest bit apart, one bit per weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.formats import table

Bytes = NDArray[np.uint8]
Integers = NDArray[Any]  # small integers of whichever type NumPy's arithmetic gives
Floats = NDArray[np.float32]

Q4_0 = np.dtype([("d", "<f2"), ("nibbles", "u1", 16)])
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("nibbles", "u1", 16)])
Q5_0 = np.dtype([("d", "<f2"), ("high", "u1", 4), ("nibbles", "u1", 16)])
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("nibbles", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])


def split_nibbles(packed: Integers) -> Integers:
    """(..., n) bytes -> (..., 2 n) integers 0 to 15: all low nibbles, then all high ones."""
    split: Integers = np.concatenate([packed & 15, packed >> 4], axis=-1)
    return split


def join_nibbles(values: Integers) -> Integers:
    """Inverse of split_nibbles."""
    low, high = np.split(values, 2, axis=-1)
    joined: Integers = low | (high << 4)
    return joined


def _integers(blocks: NDArray[np.void]) -> Floats:
    """The stored integers of a block as floats: 0 to 15, or 0 to 31 where there are high bits."""
    values = split_nibbles(blocks["nibbles"])
    if "high" in (blocks.dtype.names or ()):
        values = values | (np.unpackbits(blocks["high"], axis=-1, bitorder="little") << 4)
    return values.astype(np.float32)


def _unpack_symmetric(raw: Bytes, layout: np.dtype[np.void], offset: int) -> Floats:
    blocks = raw.view(layout)[:, 0]
    return blocks["d"].astype(np.float32)[:, None] * (_integers(blocks) - np.float32(offset))


def _unpack_minimum(raw: Bytes, layout: np.dtype[np.void]) -> Floats:
    blocks = raw.view(layout)[:, 0]
    return blocks["d"].astype(np.float32)[:, None] * _integers(blocks) + blocks["m"].astype(np.float32)[:, None]


def _unpack_q8_0(raw: Bytes) -> Floats:
    blocks = raw.view(Q8_0)[:, 0]
    return blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]


def _inverse(d: Floats) -> Floats:
    """1 / d, and 0 where d is 0: a block of zeros stores zeros."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _store(layout: np.dtype[np.void], d: Floats, q: Integers, m: Floats | None = None) -> Bytes:
    blocks = np.zeros(len(q), layout)
    blocks["d"] = d[:, 0]
    if m is not None:
        blocks["m"] = m[:, 0]
    blocks["nibbles"] = join_nibbles(q & 15)
    if "high" in (layout.names or ()):
        blocks["high"] = np.packbits(q >> 4, axis=-1, bitorder="little")
    return blocks.view(np.uint8).reshape(len(blocks), -1)


def store_integers(fmt: table.Format, d: Floats, q: Integers) -> Bytes:
    """Blocks of Q4_0, Q5_0 or Q8_0 from their scales and integers, exactly.

    d: (n, 1), each a value of float16. q: (n, 32), from -8 to 7, -16 to 15 or -128 to 127: w = d q.
    """
    if fmt is table.Q8_0:
        blocks = np.empty(len(q), Q8_0)
        blocks["d"], blocks["q"] = d[:, 0], q
        return blocks.view(np.uint8).reshape(len(blocks), -1)
    layout, offset = (Q4_0, 8) if fmt is table.Q4_0 else (Q5_0, 16)
    return _store(layout, d, (q + offset).astype(np.uint8))


def _pack_symmetric(values: Floats, layout: np.dtype[np.void], offset: int) -> Bytes:
    """The scale takes the value of largest magnitude, sign included, to -offset: the end of the range that has one more
    step than the other."""
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    d = extreme / np.float32(-offset)
    q = np.trunc(values * _inverse(d) + np.float32(offset + 0.5))
    return _store(layout, d, np.minimum(q, 2 * offset - 1).astype(np.uint8))


def _pack_minimum(values: Floats, layout: np.dtype[np.void], top: int) -> Bytes:
    low = values.min(axis=1, keepdims=True)
    d = (values.max(axis=1, keepdims=True) - low) / np.float32(top)
    q = np.trunc((values - low) * _inverse(d) + np.float32(0.5))
    return _store(layout, d, np.minimum(q, top).astype(np.uint8), low)


def _pack_q8_0(values: Floats) -> Bytes:
    """Rounds halves away from zero, as C's roundf does."""
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * _inverse(d)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    blocks = np.zeros(len(values), Q8_0)
    blocks["d"] = d[:, 0]
    blocks["q"] = np.copysign(whole + (magnitude - whole >= 0.5), scaled)
    return blocks.view(np.uint8).reshape(len(blocks), -1)


UNPACK = {
    table.Q4_0: lambda raw: _unpack_symmetric(raw, Q4_0, 8),
    table.Q4_1: lambda raw: _unpack_minimum(raw, Q4_1),
    table.Q5_0: lambda raw: _unpack_symmetric(raw, Q5_0, 16),
    table.Q5_1: lambda raw: _unpack_minimum(raw, Q5_1),
    table.Q8_0: _unpack_q8_0,
}
PACK = {
    table.Q4_0: lambda values: _pack_symmetric(values, Q4_0, 8),
    table.Q4_1: lambda values: _pack_minimum(values, Q4_1, 15),
    table.Q5_0: lambda values: _pack_symmetric(values, Q5_0, 16),
    table.Q5_1: lambda values: _pack_minimum(values, Q5_1, 31),
    table.Q8_0: _pack_q8_0,
}
