"""Matrices inside stored tensors, and tensors joined from one piece a rank: the arithmetic of sharded checkpoints.

A Window is any matrix whose elements lie at equal steps: a whole tensor, some rows or columns of one, a transpose, one
expert of a stack. `join` puts windows together along rows or columns. What one window covers without gaps is handed on
where it lies; everything else is made when it is asked for, one tensor at a time.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.formats.table import BY_NAME, Format
from herder.weights.mapping import MappedFile, OwnedBytes
from herder.weights.names import Role
from herder.weights.safetensors import DTYPE_BITS
from herder.weights.source import TensorSource

_SLAB = 4 << 20  # bytes copied at a time: the pages of the mapping that are read and given back together
_TILE = 128  # rows and columns


@dataclass(frozen=True, slots=True)
class Window:
    """Element (r, c) lies at offset + (r * row_step + c * col_step) * item bytes.

    where: names file and tensor in errors. dtype: safetensors' name of it. All elements lie inside the file: whoever
    made the first window has checked it.
    """

    file: MappedFile
    where: str
    dtype: str
    rows: int
    cols: int
    offset: int
    row_step: int
    col_step: int = 1

    @property
    def item(self) -> int:
        return DTYPE_BITS[self.dtype] // 8

    @property
    def span(self) -> int:
        """Bytes from the first element to the last, both included."""
        if not self.rows or not self.cols:
            return 0
        return ((self.rows - 1) * self.row_step + (self.cols - 1) * self.col_step + 1) * self.item

    @property
    def dense(self) -> bool:
        """Whether the elements are one run of bytes, row after row."""
        return (self.col_step == 1 or self.cols == 1) and (self.row_step == self.cols or self.rows == 1)

    def transposed(self) -> Window:
        return replace(self, rows=self.cols, cols=self.rows, row_step=self.col_step, col_step=self.row_step)

    def some_rows(self, low: int, high: int) -> Window:
        """Rows low to high - 1."""
        assert 0 <= low <= high <= self.rows
        return replace(self, rows=high - low, offset=self.offset + low * self.row_step * self.item)

    def share(self, index: int, count: int) -> Window:
        """The index-th of `count` equal runs of rows. Raises ModelFileError where the rows are not so many parts."""
        each, left = divmod(self.rows, count)
        if left or not each:
            raise ModelFileError(f"{self.where} has {self.rows} rows, which is not {count} equal parts")
        return self.some_rows(each * index, each * (index + 1))

    def bits(self) -> Any:
        """(rows, cols) unsigned integers, a view of the mapping."""
        import numpy as np

        stored = np.frombuffer(self.file.view(self.offset, self.span), f"u{self.item}")
        steps = (self.row_step * self.item, self.col_step * self.item)
        return np.lib.stride_tricks.as_strided(stored, (self.rows, self.cols), steps, writeable=False)

    def release(self) -> None:
        self.file.release(self.offset, self.span)


def window(
    file: MappedFile, name: str, dtype: str, shape: Sequence[int], offset: int, strides: Sequence[int]
) -> Window:
    """A whole tensor: a vector is one row, and the dimensions after the first are taken together, which needs them to
    lie one after another. Raises UnsupportedModel where they do not, ModelFileError for more numbers than the file can
    hold (steps of 0 and such)."""
    where = f"{file.path}: tensor {name}"
    if math.prod(shape) * DTYPE_BITS[dtype] // 8 > file.size:
        raise ModelFileError(f"{where} of {math.prod(shape)} numbers is larger than its file: save a contiguous copy")
    if len(shape) < 2:
        return Window(file, where, dtype, 1, math.prod(shape), offset, math.prod(shape), strides[0] if shape else 1)
    if len(shape) == 2:
        return Window(file, where, dtype, shape[0], shape[1], offset, strides[0], strides[1])
    inner = 1
    for size, stride in zip(shape[:0:-1], strides[:0:-1], strict=True):
        if size != 1 and stride != inner:
            raise UnsupportedModel(f"{where} is not stored row after row: save a contiguous copy of it")
        inner *= size
    return Window(file, where, dtype, shape[0], inner, offset, strides[0])


def join(
    name: str,
    role: Role,
    layer: int,
    expert: int,
    pieces: Sequence[Window],
    axis: int | None,
    shape: tuple[int, int],
    row_map: array[int] | None = None,
) -> TensorSource:
    """The tensor of (rows, cols) `shape` whose pieces are these, in order along axis: 0 rows, 1 columns, None: each is
    all of it. Several ranks may hold the same part, one after another (all of a norm; Meta's KV heads when there are
    more ranks than heads); that they are equal is checked when the tensor is made.

    Raises ModelFileError when the pieces do not make up the shape, UnsupportedModel for a dtype that is no number here.
    """
    first = pieces[0]
    fmt = float_format(first)
    for piece in pieces[1:]:
        if piece.dtype != first.dtype:
            raise ModelFileError(f"{piece.where} is stored as {piece.dtype}, but as {first.dtype} on the first rank")
    copies = _copies(pieces, axis, shape)
    rows, cols = shape
    size = rows * fmt.row_bytes(cols)
    if len(pieces) == 1 and first.dense:
        address = first.file.address(first.offset)
        return TensorSource(
            name, role, layer, fmt.id, rows, cols, address, size, row_map, first.file, first.offset, expert
        )
    if len(pieces) == 1 and row_map is None and first.row_step == 1 and first.col_step >= rows:
        address = first.file.address(first.offset)
        return TensorSource(
            name, role, layer, fmt.id, rows, cols, address, size, None, first.file, first.offset, expert, first.col_step
        )

    def make() -> OwnedBytes:
        return joined(pieces, axis or 0, copies)

    return TensorSource(name, role, layer, fmt.id, rows, cols, 0, size, row_map, expert=expert, make=make)


def float_format(piece: Window) -> Format:
    fmt = BY_NAME.get(piece.dtype)
    if fmt is None:
        raise UnsupportedModel(f"{piece.where} is stored as {piece.dtype}; supported here are F32, F16 and BF16")
    return fmt


def _copies(pieces: Sequence[Window], axis: int | None, shape: tuple[int, int]) -> int:
    """How many ranks in turn hold the same part."""
    first = pieces[0]
    if all((piece.rows, piece.cols) == shape for piece in pieces):
        return len(pieces)
    lengths = [piece.rows if axis == 0 else piece.cols for piece in pieces]
    across = {piece.cols if axis == 0 else piece.rows for piece in pieces}
    wanted, fixed = shape if axis == 0 else shape[::-1]
    copies = sum(lengths) // wanted
    whole = axis is not None and across == {fixed} and sum(lengths) == copies * wanted
    if whole and (copies == 1 or (len(set(lengths)) == 1 and len(pieces) % copies == 0)):
        return copies
    found = f"{first.rows} x {first.cols}" + (f" on the first of {len(pieces)} ranks" if len(pieces) > 1 else "")
    raise ModelFileError(
        f"{first.where} has shape {found}, but params.json asks for {shape[0]} x {shape[1]} in all: weights and "
        "configuration disagree"
    )


def joined(pieces: Sequence[Window], axis: int, copies: int = 1) -> OwnedBytes:
    """The bytes of the pieces put together. Raises ModelFileError where two ranks that should hold the same differ."""
    import numpy as np

    kept = pieces[::copies]
    item, rows = kept[0].item, sum(p.rows for p in kept) if axis == 0 else kept[0].rows
    cols = kept[0].cols if axis == 0 else sum(p.cols for p in kept)
    data = bytearray(rows * cols * item)
    target = np.frombuffer(data, f"u{item}").reshape(rows, cols)
    at = 0
    for index, piece in enumerate(kept):
        width = piece.rows if axis == 0 else piece.cols
        place = target[at : at + width] if axis == 0 else target[:, at : at + width]
        _copy(piece, place)
        for other in pieces[index * copies + 1 : (index + 1) * copies]:
            if not np.array_equal(other.bits(), place):
                raise ModelFileError(f"{other.where} differs from that of another rank: get the files again")
            other.release()
        at += width
    return OwnedBytes(data)


def _copy(piece: Window, place: Any) -> None:
    """In steps, so that a mapping's pages are given back while the rest is copied; a transpose in tiles, eight times as
    fast as whole rows against whole columns."""
    by_rows = piece.row_step >= piece.col_step
    source = piece if by_rows else piece.transposed()
    target = place if by_rows else place.T
    step = max(1, _SLAB // max(1, source.cols * source.item))
    for low in range(0, source.rows, step):
        some = source.some_rows(low, min(source.rows, low + step))
        bits, part = some.bits(), target[low : low + step]
        if by_rows:
            part[...] = bits
        else:
            for top in range(0, some.rows, _TILE):
                for left in range(0, some.cols, _TILE):
                    tile = slice(top, top + _TILE), slice(left, left + _TILE)
                    part[tile] = bits[tile]
        some.release()
