"""Llama 3.2 1B and 3B in int4, QLoRA and SpinQuant: Meta's files with quantization_args in params.json.

Matrices are int8 tensors of values -8..7 with a scale for each group of inputs, embedding and output matrix int8 with
one scale a row. QLoRA adds lora_args and `adaptor.{A,B}.weight`: scale * B A is added to the weight. SpinQuant
transforms the input of w2 by a Hadamard matrix over sqrt(n); it is its own transpose, so w2 absorbs it here. Both are
computed in float32 and kept so; every other matrix becomes what quantized/made.py decides. The int8 activations that
these models were trained for are not followed: a runtime computes with its own. Source: llama_models'
`llama3/quantization/loader.py` (Int8DynActInt4WeightLinearLoRA) and Meta's hadamard_utils.py.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from herder.core.config import ModelConfig
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.formats.table import F32
from herder.weights import names_meta
from herder.weights.fields import Fields, short
from herder.weights.names import Place, Role
from herder.weights.quantized_meta import float_type, made_source
from herder.weights.ranks import Ranks
from herder.weights.source import TensorSource
from herder.weights.windows import Window, float_format

_SCHEME = "int4_weight_int8_dynamic_activation"
Step = Callable[[Any, int], Any]  # some rows of a float32 matrix and the number of the first -> the same rows, changed


@dataclass(frozen=True, slots=True)
class _Adaptor:
    rank: int
    scale: float


class Int4:
    """Llama 3.2 1B and 3B, QLoRA and SpinQuant."""

    def __init__(self, where: str, settings: Any, adaptor: Any, config: ModelConfig, ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks
        self._dtype = float_type(config, ranks)
        if ranks.count != 1:
            raise UnsupportedModel(f"{where}: quantization_args with {ranks.count} ranks is not supported")
        keys = self._fields(where, "quantization_args", settings)
        scheme = keys.text("scheme")
        if scheme != _SCHEME:
            raise UnsupportedModel(f"{where}: quantization_args.scheme is {short(scheme)}; supported is {_SCHEME}")
        self._group = keys.integer("group_size")
        self._spin = keys.flag("spinquant", False)
        self._adaptor = None
        if adaptor is not None:
            lora = self._fields(where, "lora_args", adaptor)
            self._adaptor = _Adaptor(lora.integer("rank"), lora.number("scale"))
            self._refuse_unread(lora)
        self._refuse_unread(keys)

    @staticmethod
    def _fields(where: str, key: str, value: Any) -> Fields:
        if not isinstance(value, dict):
            raise ModelFileError(f"{where}: {key} is {short(value)}: expected an object or null")
        return Fields(where, {f"{key}.{name}": inner for name, inner in value.items()}, f"{key}.")

    @staticmethod
    def _refuse_unread(keys: Fields) -> None:
        if unknown := keys.unread():
            raise UnsupportedModel(f"{keys.where}: {keys.prefix}{unknown[0]} is not known here")

    def tensor(self, place: Place, shape: tuple[int, int], row_map: array[int] | None) -> TensorSource | None:
        import numpy as np

        from herder.weights.quantized.made import Computed, Matrix, Scaled, check_scales, evenly

        name = self._name(place)
        base = name.removesuffix(".weight")
        if base + ".scales" not in self._ranks:
            return None
        [stored], rows, cols = self._ranks.pieces(name), *shape
        group = cols if place.role in (Role.EMBED, Role.HEAD) else self._group
        if stored.dtype != "I8" or (stored.rows, stored.cols) != shape or cols % group:
            raise ModelFileError(
                f"{stored.where} is {stored.dtype} of {stored.rows} x {stored.cols}: expected I8 of {rows} x {cols} in "
                f"groups of {group}"
            )
        limits, groups = (-128, 127) if group == cols else (-8, 7), evenly(cols, group)
        scales = self._beside(base + ".scales", rows, cols // group)
        zeros = self._beside(base + ".zeros", rows, cols // group) if base + ".zeros" in self._ranks else None

        def values(low: int, high: int) -> Any:
            bits = stored.some_rows(low, high).bits().view(np.int8)
            if bits.min() < limits[0] or bits.max() > limits[1]:
                raise ModelFileError(f"{stored.where} holds {bits.min()} to {bits.max()}: expected -8 to 7")
            if zeros is not None and zeros.some_rows(low, high).bits().any():
                raise UnsupportedModel(f"{zeros.where} are not all 0: only symmetric quantization is supported")
            return bits

        def factors(low: int, high: int) -> Any:
            numbers = _floats(scales.some_rows(low, high))
            check_scales(stored.where, numbers)
            return numbers

        def products(low: int, high: int) -> Any:
            band = factors(low, high)[:, groups] * values(low, high)
            for step in fold:
                band = step(band, low)
            return band

        def release() -> None:
            for piece in (stored, scales, *([zeros] if zeros is not None else [])):
                piece.release()

        fold = self._fold(place, base, shape)
        matrix: Matrix = Scaled(name, stored.where, rows, cols, groups, values, factors, limits, release)
        if fold:
            matrix = Computed(name, stored.where, rows, cols, products, F32, release)
        made = matrix.made(self._dtype, blocks=True)
        return made_source(place, made.format, rows, cols, made.make, row_map)

    def _beside(self, name: str, rows: int, cols: int) -> Window:
        """(rows, cols) numbers for the groups of a matrix, whatever shape they are stored in."""
        [piece] = self._ranks.pieces(name)
        float_format(piece)
        if piece.rows * piece.cols != rows * cols or not piece.dense:
            raise ModelFileError(f"{piece.where} holds {piece.rows * piece.cols} numbers, not {rows} x {cols}")
        return Window(piece.file, piece.where, piece.dtype, rows, cols, piece.offset, cols)

    def _name(self, place: Place) -> str:
        if place.role is Role.EMBED:
            return names_meta.EMBEDDING
        return names_meta.origin_of(self._config, place, self._ranks).name

    def _fold(self, place: Place, base: str, shape: tuple[int, int]) -> list[Step]:
        """What is to be done with the float32 matrix."""
        steps: list[Step] = []
        if self._spin and place.role is Role.W_DOWN:
            if shape[1] & (shape[1] - 1):
                raise UnsupportedModel(f"{base}: SpinQuant with {shape[1]} inputs, which is not a power of two")
            steps.append(hadamard)
        if base + ".adaptor.A.weight" in self._ranks:
            if self._adaptor is None:
                raise ModelFileError(f"{base} has an adaptor, but params.json has no lora_args")
            [a], [b] = (self._ranks.pieces(f"{base}.adaptor.{part}.weight") for part in "AB")
            if (a.rows, a.cols, b.rows, b.cols) != (self._adaptor.rank, shape[1], shape[0], self._adaptor.rank):
                raise ModelFileError(f"{a.where} and B are not of rank {self._adaptor.rank}, as lora_args says")
            steps.append(functools.partial(_add_adaptor, a, b, self._adaptor.scale))
        return steps


def _add_adaptor(a: Window, b: Window, scale: float, band: Any, low: int) -> Any:
    """Rows low.. of the matrix plus scale * B A."""
    return band + _floats(b.some_rows(low, low + len(band))) @ _floats(a) * scale


def _floats(piece: Window) -> Any:
    import numpy as np

    from herder.formats.reference import unpack

    return unpack(float_format(piece), np.ascontiguousarray(piece.bits()), piece.rows, piece.cols)


def hadamard(band: Any, low: int = 0) -> Any:
    """Each row times the Hadamard matrix in Sylvester's order, over sqrt(n): float32, n a power of two."""
    import numpy as np

    rows, n = band.shape
    half = 1
    while half < n:
        pairs = band.reshape(rows, -1, 2, half)
        band = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2).reshape(rows, n)
        half *= 2
    return band * np.float32(n**-0.5)
