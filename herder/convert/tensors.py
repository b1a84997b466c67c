"""The tensors of an open model, one after another, in another row order, storage format or arrangement.

Bytes are moved as they are wherever the storage format stays; a cast between floating-point formats is asked for, and
what it changes is counted. One tensor (of stacked experts, one expert) is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.core.config import ModelConfig
from herder.core.errors import NumericError
from herder.formats import floats, reference, table
from herder.formats.table import Format
from herder.weights.names import Role, interleaved_rows
from herder.weights.output import Output
from herder.weights.source import TensorSource

Rows = NDArray[np.uint8]
FLOATS = (table.F32, table.F16, table.BF16)
SLAB = 4 << 20  # weights cast at a time

_Q, _K = {Role.WQ, Role.BQ}, {Role.WK, Role.BK}


@dataclass
class Casts:
    """What casts have changed. rounded: tensors with weights that the new format cannot hold -> how many."""

    rounded: dict[str, int] = field(default_factory=dict)


class Interleaved:
    """The order of q and k rows in Meta's and GGUF's files: which canonical row each of theirs is."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._orders: dict[int, NDArray[Any]] = {}

    def of(self, role: Role) -> NDArray[Any] | None:
        heads = self._config.heads if role in _Q else self._config.kv_heads if role in _K else None
        if heads is None:
            return None
        if heads not in self._orders:
            self._orders[heads] = np.argsort(np.frombuffer(interleaved_rows(heads, self._config.head_dim), np.uint32))
        return self._orders[heads]


def in_order(tensors: Iterable[TensorSource]) -> list[TensorSource]:
    """Embedding, layer after layer, final norm, output matrix: the order of the new files, whatever the old one's."""
    last = {Role.FINAL_NORM: 1 << 31, Role.HEAD: 1 << 32}
    first = {Role.EMBED: -1}
    return sorted(tensors, key=lambda t: (last.get(t.role, first.get(t.role, t.layer)), t.role, t.expert))


def output(
    source: TensorSource,
    name: str,
    fmt: Format,
    shape: tuple[int, ...],
    casts: Casts,
    order: NDArray[Any] | None = None,
) -> Output:
    """One tensor as `name`. order: row j of the new file is canonical row order[j] (of a vector, element j)."""
    return Output(name, fmt, shape, lambda: rows_of(source, fmt, casts, order))


def stacked(sources: Sequence[TensorSource], name: str, fmt: Format, casts: Casts) -> Output:
    """Several tensors of one shape, one after another, as one: (len(sources), rows, cols)."""

    def pieces() -> Iterator[memoryview | bytes]:
        for source in sources:
            yield from rows_of(source, fmt, casts, None)

    return Output(name, fmt, (len(sources), sources[0].rows, sources[0].cols), pieces)


def turned(groups: Sequence[Sequence[TensorSource]], name: str, fmt: Format, casts: Casts) -> Output:
    """Per expert several matrices, one under another, transposed: (len(groups), cols, rows of all). fmt: a float."""
    first = groups[0]
    shape = len(groups), first[0].cols, sum(source.rows for source in first)

    def pieces() -> Iterator[memoryview | bytes]:
        for group in groups:
            raw = b"".join(bytes(piece) for source in group for piece in rows_of(source, fmt, casts, None))
            matrix = np.frombuffer(raw, f"u{fmt.block_bytes}").reshape(shape[2], shape[1])
            yield np.ascontiguousarray(matrix.T).tobytes()

    return Output(name, fmt, shape, pieces)


def rows_of(
    source: TensorSource, fmt: Format, casts: Casts, order: NDArray[Any] | None
) -> Iterator[memoryview | bytes]:
    """The tensor's bytes in the new order and format, a few rows at a time."""
    rows, cols = source.rows, source.cols
    stored: Rows = np.frombuffer(source.view(), np.uint8)
    if rows == 1 and order is not None:  # a bias: its elements are rows
        stored = stored.reshape(cols, -1)[order]
        order = None
    stored = stored.reshape(rows, -1)
    if source.row_map is not None:
        canonical = np.frombuffer(source.row_map, np.uint32)
        order = canonical if order is None else canonical[order]
    step = max(1, SLAB // cols)
    changed = 0
    for low in range(0, rows, step):
        part = stored[low : low + step] if order is None else stored[order[low : low + step]]
        if fmt is not source.format:
            part, count = _cast(source, fmt, np.ascontiguousarray(part), cols)
            changed += count
        yield part.tobytes() if order is None and fmt is source.format else np.ascontiguousarray(part).data.cast("B")
    if changed:
        casts.rounded[source.name] = changed
    source.release()


def _cast(source: TensorSource, fmt: Format, part: Rows, cols: int) -> tuple[Rows, int]:
    """The rows in another floating-point format, and how many of their weights it cannot hold."""
    values = reference.unpack(source.format, part, len(part), cols)
    with np.errstate(over="ignore"):
        packed = floats.PACK[fmt](np.ascontiguousarray(values)).reshape(len(part), -1)
    back = floats.UNPACK[fmt](packed).reshape(values.shape)
    if not np.isfinite(back).all():
        raise NumericError(
            f"tensor {source.name} has weights as large as {float(np.abs(values).max()):g}, which {fmt.name} "
            "cannot hold: use BF16 or F32"
        )
    return packed, int(np.count_nonzero(back != values))


def fits(source: TensorSource, fmt: Format) -> bool:
    """Whether a small tensor can be cast without changing a number. Reads it."""
    casts = Casts()
    try:
        for _ in rows_of(source, fmt, casts, None):
            pass
    except NumericError:
        return False
    return not casts.rounded
