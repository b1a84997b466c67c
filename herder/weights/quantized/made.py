"""What a quantized matrix becomes: a block format that holds exactly the same numbers, or floating point.

The scheme of every method is w[r, c] = scale[r, g] * v[r, c], where g is the group of column c and v is an integer (the
zero point already subtracted) or a number of a small table. When v is an integer, the groups are whole blocks of
32 columns and a float16 holds every scale, the matrix is repacked without any rounding: into Q4_0 where v lies in
[-8, 7], Q5_0 in [-16, 15], Q8_0 in [-128, 127]. Otherwise it is expanded to the checkpoint's own dtype: the product in
float32, rounded once to nearest even. Both are decided when the model is opened, from scales and zero points alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from herder.core.errors import ModelFileError
from herder.formats import floats, legacy, table
from herder.formats.table import Format
from herder.weights.mapping import OwnedBytes
from herder.weights.quantized.parts import Array, Floats

SLAB = 1 << 20  # weights worked on at a time: temporary arrays of a few MiB

T = TypeVar("T", bound=np.generic)

_INFINITE = {table.F32: ("<u4", 0x7F800000), table.F16: ("<u2", 0x7C00), table.BF16: ("<u2", 0x7F80)}  # exponent bits
_RANGES = ((table.Q4_0, -8, 7), (table.Q5_0, -16, 15), (table.Q8_0, -128, 127))


@dataclass(frozen=True, slots=True)
class Made:
    """A matrix of (rows = outputs, cols = inputs) under the name that it has in an unquantized checkpoint. make gives
    its bytes anew at each call, row-major, in `format`."""

    name: str
    format: Format
    rows: int
    cols: int
    make: Callable[[], OwnedBytes]

    @property
    def bytes(self) -> int:
        return self.rows * self.format.row_bytes(self.cols)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A matrix as scales and values, read a few rows at a time.

    name: as in Made. where: names file and tensor in errors. groups: the group of each column, (cols,).
    values(low, high): rows low to high - 1, (high - low, cols). scales(low, high): (high - low, number of groups).
    limits: the least and the greatest of the values where they are integers. release: called when the matrix is made,
    to drop the mapped pages it was made from.
    """

    name: str
    where: str
    rows: int
    cols: int
    groups: NDArray[np.intp]
    values: Callable[[int, int], Array]
    scales: Callable[[int, int], Floats]
    limits: tuple[int, int] | None = None
    release: Callable[[], None] | None = None

    def made(self, dtype: Format, blocks: bool) -> Made:
        exact = self._halves()
        chosen = self._block_format() if blocks and exact else None
        if chosen is None:
            return expanded(self.name, self.where, dtype, self.rows, self.cols, self._products, self.release)
        return Made(self.name, chosen, self.rows, self.cols, lambda: self._repacked(chosen))

    def _halves(self) -> bool:
        """Whether every scale is a float16."""
        exact = True
        groups = int(self.groups.max()) + 1
        for low, high in slabs(self.rows, groups):
            scales = self.scales(low, high)
            check_scales(self.where, scales)
            with np.errstate(over="ignore"):
                exact = exact and bool((scales.astype(np.float16) == scales).all())
        return exact

    def _block_format(self) -> Format | None:
        if self.limits is None or self.cols % 32 or (self.groups.reshape(-1, 32) != self.groups[::32, None]).any():
            return None
        low, high = self.limits
        return next((fmt for fmt, least, greatest in _RANGES if least <= low and high <= greatest), None)

    def _repacked(self, fmt: Format) -> OwnedBytes:
        owner, target = _target(fmt, self.rows, self.cols)
        for low, high in slabs(self.rows, self.cols):
            d = self.scales(low, high)[:, self.groups[::32]]
            q = self.values(low, high).reshape(-1, 32)
            target[low:high] = legacy.store_integers(fmt, d.reshape(-1, 1), q).reshape(high - low, -1)
        if self.release is not None:
            self.release()
        return owner

    def _products(self, low: int, high: int) -> Floats:
        product = spread(self.scales(low, high), self.groups)
        product *= self.values(low, high)
        return product


@dataclass(frozen=True, slots=True)
class Computed:
    """A matrix that no block format holds. products(low, high): its rows in float32. dtype: its own, None: the
    checkpoint's."""

    name: str
    where: str
    rows: int
    cols: int
    products: Callable[[int, int], Floats]
    dtype: Format | None = None
    release: Callable[[], None] | None = None

    def made(self, dtype: Format, blocks: bool) -> Made:
        return expanded(self.name, self.where, self.dtype or dtype, self.rows, self.cols, self.products, self.release)


class Matrix(Protocol):
    """What a method's reader gives."""

    @property
    def name(self) -> str: ...
    def made(self, dtype: Format, blocks: bool) -> Made:
        """blocks: whether a block format will do. dtype: F32, F16 or BF16, where none does or none is exact.

        Raises ModelFileError for scales that are not finite.
        """
        ...


def spread(per_group: NDArray[T], groups: NDArray[np.intp]) -> NDArray[T]:
    """(rows, cols): what a row has for each group, at each of the group's columns."""
    size = int(np.count_nonzero(groups == 0))
    if (groups == evenly(len(groups), max(1, size))).all():
        return np.repeat(per_group, size, axis=1)[:, : len(groups)]  # much faster than a gather
    return per_group[:, groups]


def check_scales(where: str, scales: Floats) -> None:
    if not np.isfinite(scales).all():
        raise ModelFileError(f"{where} has scales that are not finite: the file is damaged, get it again")


def expanded(
    name: str,
    where: str,
    dtype: Format,
    rows: int,
    cols: int,
    products: Callable[[int, int], Floats],
    release: Callable[[], None] | None = None,
) -> Made:
    """The matrix whose rows low to high - 1 are products(low, high), rounded to dtype."""

    def make() -> OwnedBytes:
        owner, target = _target(dtype, rows, cols)
        for low, high in slabs(rows, cols):
            with np.errstate(over="ignore", invalid="ignore"):  # found when it is rounded
                values = products(low, high)
            target[low:high] = _rounded(where, dtype, values)
        if release is not None:
            release()
        return owner

    return Made(name, dtype, rows, cols, make)


def _rounded(where: str, dtype: Format, values: Floats) -> NDArray[np.uint8]:
    """(rows, bytes) of float32 values rounded to dtype. Raises ModelFileError where one becomes infinite."""
    with np.errstate(over="ignore"):
        raw = floats.PACK[dtype](np.ascontiguousarray(values)).reshape(len(values), -1)
    word, infinite = _INFINITE[dtype]
    if (raw.view(word) & infinite == infinite).any():
        raise ModelFileError(f"{where} holds weights that {dtype.name} cannot hold: the file is damaged, get it again")
    return raw


def slabs(rows: int, cols: int) -> list[tuple[int, int]]:
    """Ranges of rows of about SLAB weights."""
    step = max(1, SLAB // max(1, cols))
    return [(low, min(low + step, rows)) for low in range(0, rows, step)]


def evenly(cols: int, size: int) -> NDArray[np.intp]:
    """The group of each column where each `size` columns in turn are one; the last may be shorter."""
    return np.arange(cols, dtype=np.intp) // size


def _target(fmt: Format, rows: int, cols: int) -> tuple[OwnedBytes, NDArray[np.uint8]]:
    data = bytearray(rows * fmt.row_bytes(cols))
    return OwnedBytes(data), np.frombuffer(data, np.uint8).reshape(rows, -1)
