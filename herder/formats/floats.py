"""Floating-point storage: F32, F16 (IEEE binary16) and BF16 (the upper half of a float32)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from herder.formats import table


def unpack_f32(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return raw.view("<f4")


def unpack_f16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return raw.view("<f2").astype(np.float32)


def unpack_bf16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def pack_f32(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return values.astype("<f4").view(np.uint8)


def pack_f16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return values.astype("<f2").view(np.uint8)


def pack_bf16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounds to nearest, ties to even: adds half a unit of the last kept bit, less one when that bit is 0, and cuts.
    The largest float32 become infinite, as IEEE rounding has it."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    return rounded.astype("<u2").view(np.uint8)


UNPACK = {table.F32: unpack_f32, table.F16: unpack_f16, table.BF16: unpack_bf16}
PACK = {table.F32: pack_f32, table.F16: pack_f16, table.BF16: pack_bf16}
