"""Small unsigned integers packed into 32-bit words: element i of a row is bits [i * n, (i + 1) * n) of its words.

The words are one stream of bits, least significant first. GPTQ packs its 3-bit integers across word boundaries in just
this way (32 of them in 3 words, AutoGPTQ's qlinear pack), and so does compressed-tensors' pack_to_int32; 2, 4 and 8
bits never cross one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.weights.quantized.parts import Array


def words_for(count: int, bits: int) -> int:
    """Words that `count` elements take."""
    return -(-count * bits // 32)


def unpack(words: Array, bits: int, low: int, high: int) -> NDArray[np.uint8]:
    """Elements low to high - 1 of each row, (rows, high - low), 0 to 2 ** bits - 1, from (rows, words) int32.

    bits: 2, 3, 4 or 8. Reads only the words that the elements lie in.
    """
    first = low // 32  # 32 elements are `bits` whole words
    part = words[:, first * bits : -(-high // 32) * bits]
    raw = np.ascontiguousarray(part, "<i4").view(np.uint8)
    return _elements(raw, bits)[:, low - first * 32 : high - first * 32]


def _elements(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return raw
    if bits == 3:
        stream = np.unpackbits(raw, axis=1, bitorder="little")
        stream = stream[:, : stream.shape[1] // 3 * 3].reshape(len(raw), -1, 3)
        three: NDArray[Any] = stream[:, :, 0] | stream[:, :, 1] << 1 | stream[:, :, 2] << 2
        return three
    step = 8 // bits
    elements = np.empty((len(raw), raw.shape[1] * step), np.uint8)
    for i in range(step):
        elements[:, i::step] = raw >> (i * bits) & (2**bits - 1)
    return elements
