"""Stored rows -> float32 and back, for every format: the truth that the C++ core and other kernels are tested against.

Plain NumPy, one expression per formula; float32 arithmetic in the order ggml uses, so that results agree with it bit
for bit. It is not meant to be fast. Scales that are NaN or infinite give such weights: the caller looks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.core.errors import ModelFileError, NumericError, UnsupportedModel
from herder.formats import floats, iquants, kquants, legacy
from herder.formats.table import Format

# format -> (blocks, block_bytes) uint8 -> (blocks, block) float32, and the inverse
_UNPACK: dict[Format, Callable[[Any], Any]] = {**floats.UNPACK, **legacy.UNPACK, **kquants.UNPACK, **iquants.UNPACK}
_PACK: dict[Format, Callable[[Any], Any]] = {**floats.PACK, **legacy.PACK}

PACKABLE: tuple[Format, ...] = tuple(_PACK)


def unpack(fmt: Format, data: Any, rows: int, cols: int) -> NDArray[np.float32]:
    """(rows, cols) float32 from the stored bytes (anything with the buffer protocol), rows without padding.

    Raises ModelFileError when data is not exactly rows * fmt.row_bytes(cols) bytes or cols are not whole blocks.
    """
    raw = np.frombuffer(data, np.uint8)
    if not fmt.whole_blocks(cols) or raw.size != rows * fmt.row_bytes(cols):
        raise ModelFileError(
            f"{raw.size} bytes are not {rows} x {cols} weights of {fmt.name}, which stores {fmt.block} weights in "
            f"{fmt.block_bytes} bytes"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        values: NDArray[np.float32] = _UNPACK[fmt](raw.reshape(-1, fmt.block_bytes))
    return values.reshape(rows, cols)


def pack(fmt: Format, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, row_bytes) bytes from (rows, cols) values.

    Raises UnsupportedModel for a format without a packer (see PACKABLE) or cols that are not whole blocks, NumericError
    for values that are not finite or too large for the format's float16 scale.
    """
    if fmt not in _PACK:
        raise UnsupportedModel(f"weights cannot be packed as {fmt.name}; use {', '.join(f.name for f in PACKABLE)}")
    rows, cols = values.shape
    if not fmt.whole_blocks(cols):
        raise UnsupportedModel(f"rows of {cols} weights cannot be packed as {fmt.name}: blocks are {fmt.block} weights")
    values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise NumericError(f"weights with NaN or infinity cannot be packed as {fmt.name}: check where they come from")
    with np.errstate(over="ignore", invalid="ignore"):
        raw: NDArray[np.uint8] = _PACK[fmt](values.reshape(-1, fmt.block))
    packed = raw.reshape(rows, -1)
    if not np.isfinite(unpack(fmt, packed, rows, cols)).all():
        largest = float(np.abs(values).max())
        raise NumericError(f"weights as large as {largest:g} overflow {fmt.name}: use BF16 or F32")
    return packed
