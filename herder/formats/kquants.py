"""Superblocks of 256 weights whose small scales are themselves quantized: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

Layouts as in ggml's ggml-common.h (block_q2_K and its siblings). A superblock holds 16 groups of 16 weights (Q2_K,
Q3_K, Q6_K) or 8 of 32 (Q4_K, Q5_K); group j has w = (d * scale_j) * q, less (dmin * min_j) where there are minima.
The bits of a weight are spread over planes: a run of bytes is read several times, with another shift for each group of
weights. Only unpacking is here; packing these well takes a search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.formats import table
from herder.formats.legacy import split_nibbles

Bytes = NDArray[np.uint8]
Integers = NDArray[Any]  # small integers of whichever type NumPy's arithmetic gives
Floats = NDArray[np.float32]

Q2_K = np.dtype([("scales", "u1", 16), ("low", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
Q3_K = np.dtype([("high", "u1", 32), ("low", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("low", "u1", 128)])
Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("low", "u1", 128)])
Q6_K = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


def _planes(packed: Integers, bits: int, run: int) -> Integers:
    """(n, bytes) -> (n, bytes * 8 / bits): each run of `run` bytes gives its lowest bits, then the next, and on."""
    n = len(packed)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    values: Integers = (packed.reshape(n, -1, 1, run) >> shifts) & (2**bits - 1)
    return values.reshape(n, -1)


def _scale(blocks: NDArray[np.void], field: str, factors: Integers) -> Floats:
    """d (or dmin) times the integers of the groups: (n, groups, 1)."""
    return (blocks[field].astype(np.float32)[:, None] * factors.astype(np.float32))[:, :, None]


def _apply(scales: Floats, values: Integers, minima: Floats | None = None) -> Floats:
    """The groups' scales and minima over (n, 256) integers."""
    grouped = scales * values.astype(np.float32).reshape(*scales.shape[:2], -1)
    return (grouped if minima is None else grouped - minima).reshape(len(values), -1)


def _unpack_q2_k(raw: Bytes) -> Floats:
    blocks = raw.view(Q2_K)[:, 0]
    scales, minima = blocks["scales"] & 15, blocks["scales"] >> 4
    return _apply(_scale(blocks, "d", scales), _planes(blocks["low"], 2, 32), _scale(blocks, "dmin", minima))


def _unpack_q3_k(raw: Bytes) -> Floats:
    """Signed: a clear high bit takes 4 off. The 16 six-bit scales, less 32: four low bits each in 8 bytes (the first
    eight groups in the low nibbles), then two high bits each in 4 bytes."""
    blocks = raw.view(Q3_K)[:, 0]
    low = split_nibbles(blocks["scales"][:, :8])
    high = _planes(blocks["scales"][:, 8:], 2, 4)
    scales = (low | (high << 4)).astype(np.int8) - np.int8(32)
    offset = (1 - _planes(blocks["high"], 1, 32).astype(np.int8)) * np.int8(4)
    return _apply(_scale(blocks, "d", scales), _planes(blocks["low"], 2, 32).astype(np.int8) - offset)


def _scales_and_minima(packed: Integers) -> tuple[Integers, Integers]:
    """Twelve bytes -> eight six-bit scales and eight six-bit minima, for Q4_K and Q5_K.

    Bytes 0-3 and 4-7 hold scales and minima 0-3 in their low six bits. Scales and minima 4-7 have their low four bits
    in the nibbles of bytes 8-11, and their high two bits on top of bytes 0-3 and 4-7.
    """
    scales, minima, nibbles = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    return (
        np.concatenate([scales & 63, (nibbles & 15) | ((scales >> 6) << 4)], axis=1),
        np.concatenate([minima & 63, (nibbles >> 4) | ((minima >> 6) << 4)], axis=1),
    )


def _unpack_q4_k(raw: Bytes) -> Floats:
    blocks = raw.view(Q4_K)[:, 0]
    scales, minima = _scales_and_minima(blocks["scales"])
    return _apply(_scale(blocks, "d", scales), _planes(blocks["low"], 4, 32), _scale(blocks, "dmin", minima))


def _unpack_q5_k(raw: Bytes) -> Floats:
    blocks = raw.view(Q5_K)[:, 0]
    scales, minima = _scales_and_minima(blocks["scales"])
    values = _planes(blocks["low"], 4, 32) | (_planes(blocks["high"], 1, 32) << 4)
    return _apply(_scale(blocks, "d", scales), values, _scale(blocks, "dmin", minima))


def _unpack_q6_k(raw: Bytes) -> Floats:
    blocks = raw.view(Q6_K)[:, 0]
    values = _planes(blocks["low"], 4, 64) | (_planes(blocks["high"], 2, 32) << 4)
    return _apply(_scale(blocks, "d", blocks["scales"]), values.astype(np.int8) - np.int8(32))


UNPACK = {
    table.Q2_K: _unpack_q2_k,
    table.Q3_K: _unpack_q3_k,
    table.Q4_K: _unpack_q4_k,
    table.Q5_K: _unpack_q5_k,
    table.Q6_K: _unpack_q6_k,
}
