"""Four-bit indices into a codebook: IQ4_NL (32 weights, one scale), IQ4_XS (256 weights, a scale for each 32), MXFP4.

Layouts and the codebook as in ggml's ggml-common.h (block_iq4_nl, block_iq4_xs, block_mxfp4, kvalues_iq4nl). MXFP4 is
the OCP Microscaling format: an E8M0 scale (a power of two) over 32 E2M1 numbers. Only unpacking is here.
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

IQ4_NL = np.dtype([("d", "<f2"), ("nibbles", "u1", 16)])
IQ4_XS = np.dtype([("d", "<f2"), ("scales_high", "<u2"), ("scales_low", "u1", 4), ("nibbles", "u1", (8, 16))])
MXFP4 = np.dtype([("e", "u1"), ("nibbles", "u1", 16)])

NON_LINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # finer near zero, where a normal distribution has its weights
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # ggml has no -0


def _unpack_iq4_nl(raw: Bytes) -> Floats:
    blocks = raw.view(IQ4_NL)[:, 0]
    return blocks["d"].astype(np.float32)[:, None] * NON_LINEAR[split_nibbles(blocks["nibbles"])]


def _unpack_iq4_xs(raw: Bytes) -> Floats:
    """The eight six-bit scales, less 32: low four bits in the nibbles of 4 bytes in order, high two bits in 16 bits."""
    blocks = raw.view(IQ4_XS)[:, 0]
    low = np.stack([blocks["scales_low"] & 15, blocks["scales_low"] >> 4], axis=-1).reshape(-1, 8)
    high = (blocks["scales_high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scales = (low | (high << 4)).astype(np.float32) - np.float32(32)
    scales = blocks["d"].astype(np.float32)[:, None] * scales
    values: Floats = scales[:, :, None] * NON_LINEAR[split_nibbles(blocks["nibbles"])]
    return values.reshape(-1, 256)


def _unpack_mxfp4(raw: Bytes) -> Floats:
    """Scale 2 ** (e - 127). e = 255, a NaN in the OCP format, is 2 ** 128 here as in ggml, which never writes it."""
    blocks = raw.view(MXFP4)[:, 0]
    half = np.ldexp(np.float32(0.5), blocks["e"].astype(np.int32) - 127)  # half of it: 2 ** 128 is no float32
    return half[:, None] * (2 * E2M1[split_nibbles(blocks["nibbles"])])


UNPACK = {table.IQ4_NL: _unpack_iq4_nl, table.IQ4_XS: _unpack_iq4_xs, table.MXFP4: _unpack_mxfp4}
