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
from herder.formats.table import F32, Format
from herder.weights import names_meta
from herder.weights.fields import Fields, short
from herder.weights.mapping import OwnedBytes
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

        from herder.weights.quantized.made import Scaled, evenly

        name = self._name(place)
        base = name.removesuffix(".weight")
        if base + ".scales" not in self._ranks:
            return None
        [stored], [scales] = self._ranks.pieces(name), self._ranks.pieces(base + ".scales")
        rows, cols = shape
        group = cols if place.role in (Role.EMBED, Role.HEAD) else self._group
        if stored.dtype != "I8" or (stored.rows, stored.cols) != shape or cols % group:
            raise ModelFileError(
                f"{stored.where} is {stored.dtype} of {stored.rows} x {stored.cols}: expected I8 of {rows} x {cols} in "
                f"groups of {group}"
            )
        count = cols // group
        fmt = float_format(scales)
        if scales.rows * scales.cols != rows * count or not scales.dense:
            raise ModelFileError(f"{scales.where} holds {scales.rows * scales.cols} scales, not {rows} x {count}")
        factors = Window(scales.file, scales.where, scales.dtype, rows, count, scales.offset, count)
        self._check_zeros(base)

        def values(low: int, high: int) -> Any:
            return stored.some_rows(low, high).bits().view(np.int8)

        def numbers(low: int, high: int) -> Any:
            return _floats(factors.some_rows(low, high), fmt)

        limits = (-128, 127) if group == cols else self._limits(stored)
        scaled = Scaled(
            name=name, where=stored.where, rows=rows, cols=cols, groups=evenly(cols, group), values=values,
            scales=numbers, limits=limits,
        )  # fmt: skip
        fold = self._fold(place, base, shape)
        made = scaled.made(F32 if fold else self._dtype, blocks=fold is None)
        if fold is None:
            return made_source(place, made.format, rows, cols, made.make, row_map)
        return made_source(place, F32, rows, cols, functools.partial(_folded, made.make, shape, fold), row_map)

    def _name(self, place: Place) -> str:
        if place.role is Role.EMBED:
            return names_meta.EMBEDDING
        return names_meta.origin_of(self._config, place, self._ranks).name

    def _check_zeros(self, base: str) -> None:
        if base + ".zeros" in self._ranks:
            [zeros] = self._ranks.pieces(base + ".zeros")
            if zeros.bits().any():
                raise UnsupportedModel(f"{zeros.where} are not all 0: only symmetric quantization is supported")

    @staticmethod
    def _limits(stored: Window) -> tuple[int, int]:
        """-8 and 7, which every value must keep to."""
        import numpy as np

        bits = stored.bits().view(np.int8)
        if bits.min() < -8 or bits.max() > 7:
            raise ModelFileError(f"{stored.where} holds {bits.min()} to {bits.max()}: expected -8 to 7")
        return -8, 7

    def _fold(self, place: Place, base: str, shape: tuple[int, int]) -> list[Step] | None:
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
        return steps or None


def _add_adaptor(a: Window, b: Window, scale: float, band: Any, low: int) -> Any:
    """Rows low.. of the matrix plus scale * B A."""
    product = _floats(b.some_rows(low, low + len(band)), float_format(b)) @ _floats(a, float_format(a))
    return band + product * scale


def _floats(piece: Window, fmt: Format) -> Any:
    import numpy as np

    from herder.formats.reference import unpack

    return unpack(fmt, np.ascontiguousarray(piece.bits()), piece.rows, piece.cols)


def _folded(make: Callable[[], OwnedBytes], shape: tuple[int, int], steps: list[Step]) -> OwnedBytes:
    """In place, some rows at a time."""
    import numpy as np

    from herder.weights.quantized.made import slabs

    rows, cols = shape
    data = make()
    matrix = np.frombuffer(data.view(0, 4 * rows * cols), np.float32).reshape(shape)
    for low, high in slabs(rows, cols):
        band: Any = matrix[low:high]
        for step in steps:
            band = step(band, low)
        matrix[low:high] = band
    return data


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
