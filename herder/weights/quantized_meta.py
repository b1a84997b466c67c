"""Meta's checkpoints in fp8 and int4 whose scales are files of their own, one a rank.

- fp8_scales_N.pt (Llama 3.1 405B FP8, Llama 4 FP8): float8 e4m3 with one float32 scale for each output and rank;
  feed-forward networks or routed experts, some layers left out. Sources: llama_models' `llama3/quantization/loader.py`
  and `llama4/scripts/quantize.py`.
- int4_scales_N.pt (Llama 4, as quantize.py writes it): experts, two values a byte along the inputs, the even one low,
  one float32 scale for each output and 128 inputs. The bytes are saved as if they were float8.

How activations were to be quantized (an upper bound of 1200) is not followed: a runtime computes with its own. What a
matrix becomes is decided by quantized/made.py: a block format that holds the same numbers, or the checkpoint's
floating-point format, rounded once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from herder.core.config import ModelConfig
from herder.core.errors import ModelFileError
from herder.formats.table import Format
from herder.weights import names_meta
from herder.weights.fields import short
from herder.weights.mapping import OwnedBytes
from herder.weights.names import EXPERTS, Place, Role, canonical_name
from herder.weights.ranks import Ranks
from herder.weights.source import TensorSource
from herder.weights.windows import Window, float_format

INT4_GROUP = 128  # llama_models' int4_row_quantize
_MATRICES = {Role.W_GATE: "w1", Role.W_UP: "w3", Role.W_DOWN: "w2"}
_EXPERTS = {Role.EXPERT_GATE: "w1", Role.EXPERT_UP: "w3", Role.EXPERT_DOWN: "w2"}
_SHARED = {Role.SHARED_GATE: "w1", Role.SHARED_UP: "w3", Role.SHARED_DOWN: "w2"}


class Quantized(Protocol):
    """The quantized tensors of a checkpoint."""

    def tensor(self, place: Place, shape: tuple[int, int], row_map: array[int] | None) -> TensorSource | None:
        """The tensor of (rows, cols) `shape`, or None where it is not quantized."""


def float_type(config: ModelConfig, ranks: Ranks) -> Format:
    """What the checkpoint's own numbers are: the final norm's."""
    origin = names_meta.origin_of(config, Place(Role.FINAL_NORM), ranks)
    return float_format(ranks.pieces(origin.name)[0])


class Scales:
    """fp8 and int4 with files of scales: one a rank, by names of their own."""

    def __init__(self, kind: str, config: ModelConfig, ranks: Ranks, scales: Sequence[Mapping[str, Window]]) -> None:
        self._kind = kind
        self._config = config
        self._ranks = ranks
        self._scales = scales
        self._dtype = float_type(config, ranks)

    def tensor(self, place: Place, shape: tuple[int, int], row_map: array[int] | None) -> TensorSource | None:
        names = [self._name(place, rank) for rank in range(self._ranks.count)]
        present = [name in scales for name, scales in zip(names, self._scales, strict=True)]
        if not any(present):
            return None
        if not all(present):
            raise ModelFileError(f"{self._ranks.where}: scales {short(names[present.index(False)])} are missing")
        origin = names_meta.origin_of(self._config, place, self._ranks)
        pieces = self._ranks.pieces(origin.name)
        scales = [scales[name] for name, scales in zip(names, self._scales, strict=True)]
        values = [self._part(piece, place) for piece in pieces]
        return _scaled(place, shape, self._kind, values, scales, origin.axis == names_meta.ROWS, self._dtype)

    def _name(self, place: Place, rank: int) -> str:
        if place.role in _MATRICES:
            return f"{place.layer}_feed_forward.{_MATRICES[place.role]}_{rank}"
        if place.role in _EXPERTS:
            return f"layers.{place.layer}.feed_forward.experts.{_EXPERTS[place.role]}"
        if place.role in _SHARED:
            return f"layers.{place.layer}.feed_forward.shared_expert.{_SHARED[place.role]}"
        return ""

    def _part(self, piece: Window, place: Place) -> Window:
        """(outputs, inputs) of one matrix; of int4 (outputs, inputs / 2)."""
        if place.role not in EXPERTS:
            return piece
        assert self._config.experts is not None
        return piece.share(place.expert, self._config.experts.count).transposed()


def _scaled(
    place: Place, shape: tuple[int, int], kind: str, pieces: list[Window], scales: list[Window], by_rows: bool,
    dtype: Format,
) -> TensorSource:  # fmt: skip
    """A matrix joined from one piece a rank, each with its scales: a column of them for fp8, one for each INT4_GROUP
    inputs for int4 (stored inputs first). Each rank's inputs are groups of their own."""
    import numpy as np

    from herder.weights.quantized.made import Scaled
    from herder.weights.quantized.parts import decode

    rows, cols = shape
    packed = kind == "int4"
    for piece in pieces:
        if piece.dtype not in (("F8_E4M3", "I8", "U8") if packed else ("F8_E4M3",)):
            raise ModelFileError(f"{piece.where} has {kind} scales but is stored as {piece.dtype}")
    widths = [piece.cols * (2 if packed else 1) for piece in pieces]
    sizes = [INT4_GROUP if packed else max(1, width) for width in widths]
    tall = [piece.rows for piece in pieces]
    whole = (sum(tall), widths[0]) if by_rows else (tall[0], sum(widths))
    if whole != shape or len(set(widths if by_rows else tall)) > 1 or any(map(int.__mod__, widths, sizes)):
        raise ModelFileError(
            f"{pieces[0].where} has {tall[0]} x {widths[0]} values on the first of {len(pieces)} ranks, but params.json"
            f" asks for {rows} x {cols} in all: weights and configuration disagree"
        )
    matrices = [
        _scale_matrix(scale, place, height, width // size, packed)
        for scale, height, width, size in zip(scales, tall, widths, sizes, strict=True)
    ]
    counts = [width // size for width, size in zip(widths, sizes, strict=True)]
    if by_rows:
        groups = np.arange(cols, dtype=np.intp) // sizes[0]
    else:
        starts = np.cumsum([0, *counts[:-1]])
        groups = np.concatenate([
            start + np.arange(width, dtype=np.intp) // size
            for start, width, size in zip(starts, widths, sizes, strict=True)
        ])  # fmt: skip

    def numbers(piece: Window) -> Any:
        bits = piece.bits()
        if not packed:
            return decode(piece.where, "F8_E4M3", bits)
        pairs = np.empty((piece.rows, piece.cols, 2), np.int8)
        pairs[..., 0] = (bits << 4).astype(np.uint8).view(np.int8) >> 4
        pairs[..., 1] = np.ascontiguousarray(bits).view(np.int8) >> 4
        return pairs.reshape(piece.rows, -1)

    def values(low: int, high: int) -> Any:
        return _band(pieces, by_rows, low, high, numbers)

    def factors(low: int, high: int) -> Any:
        return _band(matrices, by_rows, low, high, lambda matrix: matrix.bits().view(np.float32).copy())

    def release() -> None:
        for piece in (*pieces, *matrices):
            piece.release()

    limits = (-8, 7) if packed else None
    made = Scaled(canonical_name(*place), pieces[0].where, rows, cols, groups, values, factors, limits, release).made(
        dtype, blocks=True
    )
    return made_source(place, made.format, rows, cols, made.make)


def _scale_matrix(scale: Window, place: Place, rows: int, groups: int, packed: bool) -> Window:
    """(outputs, groups) from (outputs,) or (outputs, 1), (groups, outputs), or a stack of one of these an expert."""
    if scale.dtype != "F32":
        raise ModelFileError(f"{scale.where} is stored as {scale.dtype}: expected scales of F32")
    expert = place.role in EXPERTS
    one = scale.some_rows(place.expert, place.expert + 1) if expert and place.expert < scale.rows else scale
    total = one.rows * one.cols
    if total != rows * groups or (expert and place.expert >= scale.rows) or not one.dense:
        raise ModelFileError(f"{scale.where} holds {total} scales for each matrix, not {rows} x {groups}")
    steps = (1, rows) if packed else (groups, 1)
    return Window(one.file, one.where, one.dtype, rows, groups, one.offset, *steps)


def _band(pieces: Sequence[Window], by_rows: bool, low: int, high: int, read: Callable[[Window], Any]) -> Any:
    """Rows low to high - 1 of the joined matrix."""
    import numpy as np

    if not by_rows:
        return np.concatenate([read(piece.some_rows(low, high)) for piece in pieces], axis=1)
    parts, start = [], 0
    for piece in pieces:
        begin, end = max(low - start, 0), min(high - start, piece.rows)
        if begin < end:
            parts.append(read(piece.some_rows(begin, end)))
        start += piece.rows
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def made_source(
    place: Place, fmt: Format, rows: int, cols: int, make: Callable[[], OwnedBytes], row_map: array[int] | None = None
) -> TensorSource:
    name, size = canonical_name(*place), rows * fmt.row_bytes(cols)
    return TensorSource(
        name, place.role, place.layer, fmt.id, rows, cols, 0, size, row_map, expert=place.expert, make=make
    )
