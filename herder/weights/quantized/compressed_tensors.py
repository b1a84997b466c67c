"""compressed-tensors: w = scale * (q - zero), as llm-compressor saves it: packed integers, int8 or eight-bit floats.

Tensors of a linear layer of `in` inputs and `out` outputs (compressors/pack_quantized and naive_quantized):
  pack-quantized   weight_packed int32 (out, in * b / 32), q + 2 ** (b - 1) packed along each row, see words.py;
                   weight_zero_point int32 (out * b / 32, groups), packed along each column; weight_shape (2)
  int-quantized    weight int8 (out, in), weight_zero_point int8 in the shape of the scales
  float-quantized  weight float8_e4m3fn (out, in)
  weight_scale     () or (1) per tensor; (out, 1) per channel; (out, groups) per group; a grid of blocks
  weight_g_idx     int32 (in), the group of each input, or -1 everywhere: input // group_size
The package multiplies in the scales' dtype, in which a product is rounded once; where a matrix is expanded here, it is
rounded once to the checkpoint's dtype, which is the same when the two are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import Fields
from herder.weights.quantized.ct_schemes import Scheme, Schemes
from herder.weights.quantized.made import Scaled, evenly, slabs, spread
from herder.weights.quantized.parts import FLOATS, Array, Checkpoint, Floats, Integers, Part
from herder.weights.quantized.words import unpack, words_for

HARMLESS = "quantization_status global_compression_ratio version kv_cache_scheme"

# Scales of activations, of the keys and of the values: the runtime has its own.
_ACTIVATIONS = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "k_scale", "v_scale",
    "k_zero_point", "v_zero_point", "q_scale",
)  # fmt: skip


def read(keys: Fields, checkpoint: Checkpoint) -> list[Scaled]:
    """Every module with a `weight_scale`. Raises ModelFileError, UnsupportedModel."""
    schemes = Schemes(keys)
    found = []
    for module in checkpoint.modules(".weight_scale"):
        scheme = schemes.of(module)
        if module + ".weight_packed" in checkpoint:
            found.append(_packed(keys, checkpoint, module, scheme))
        else:
            found.append(_plain(checkpoint, module, scheme))
    for suffix in _ACTIVATIONS:
        checkpoint.drop(*(f"{module}.{suffix}" for module in checkpoint.modules("." + suffix)))
    return found


def _packed(keys: Fields, checkpoint: Checkpoint, module: str, scheme: Scheme) -> Scaled:
    bits = scheme.bits
    if scheme.kind != "int" or bits not in (2, 4, 8):
        raise UnsupportedModel(
            f"{keys.where}: {module} is packed from {scheme.kind} of {bits} bits; supported are int of 2, 4 and 8"
        )
    packed = checkpoint.take_matrix(module + ".weight_packed", ("I32",))
    stated = checkpoint.take(module + ".weight_shape", ("I64", "I32"), (2,))
    rows, cols = (int(n) for n in stated.array())
    if packed.shape != (rows, words_for(cols, bits)):
        raise ModelFileError(
            f"{stated.where} says {rows} x {cols}, which {bits} bits a weight do not pack into {packed.shape[0]} x "
            f"{packed.shape[1]} words: weights and configuration disagree"
        )
    grid = _Grid(checkpoint, module, scheme, rows, cols)
    half = 2 ** (bits - 1)
    name, zeros = module + ".weight_zero_point", None
    if not scheme.symmetric:
        points = checkpoint.take(name, ("I32",), (words_for(rows, bits), grid.count))

        def zeros(low: int, high: int) -> Integers:
            return unpack(points.array().T, bits, low, high).T.astype(np.int16) - np.int16(half)

    def q(low: int, high: int) -> Array:
        return unpack(packed.array()[low:high], bits, 0, cols).astype(np.int16) - np.int16(half)

    return grid.scaled(packed, q, zeros, (-half, half - 1))


def _plain(checkpoint: Checkpoint, module: str, scheme: Scheme) -> Scaled:
    """Integers or floats of eight bits, in a type that safetensors has."""
    part = checkpoint.take_matrix(module + ".weight", ("I8",) if scheme.kind == "int" else ("F8_E4M3",))
    if scheme.bits > 8 or (scheme.kind == "float" and scheme.bits != 8):
        raise UnsupportedModel(f"{part.where} is {scheme.kind} of {scheme.bits} bits by its config group: only 8")
    rows, cols = part.shape
    grid = _Grid(checkpoint, module, scheme, rows, cols)
    if scheme.kind == "float":
        name = module + ".weight_zero_point"
        if name in checkpoint and checkpoint.take(name, (*FLOATS, "F8_E4M3", "I8")).array().any():
            raise UnsupportedModel(f"{part.where} has float weights with zero points, which is not supported")
        return grid.scaled(part, lambda low, high: part.floats(part.array()[low:high]), None, None)
    zeros = None
    if not scheme.symmetric:
        points = checkpoint.take(module + ".weight_zero_point", ("I8",), *grid.shapes)

        def zeros(low: int, high: int) -> Integers:
            return grid.rows_of(points.array(), low, high).astype(np.int16)

    return grid.scaled(part, lambda low, high: part.array()[low:high].astype(np.int16), zeros, (-128, 127))


class _Grid:
    """Where the scales of one matrix apply. shapes: those that the scales may have. count: columns of scales."""

    def __init__(self, checkpoint: Checkpoint, module: str, scheme: Scheme, rows: int, cols: int) -> None:
        self.name, self.rows, self.cols = module + ".weight", rows, cols
        height, width = scheme.block or (1 if scheme.strategy != "tensor" else rows, cols)
        if scheme.strategy == "group":
            width = scheme.group or cols
        self.height, self.count = height, -(-cols // width)
        down = -(-rows // height)
        self.shapes: tuple[tuple[int, ...], ...] = ((down, self.count),)
        if scheme.strategy == "tensor":
            self.shapes += ((1,), ())
        elif self.count == 1:
            self.shapes += ((down,),)
        self.scale = checkpoint.take(module + ".weight_scale", FLOATS, *self.shapes)
        self.groups = evenly(cols, width)
        name = module + ".weight_g_idx"
        if name in checkpoint and (checkpoint.take(name, ("I32", "I64"), (cols,)).array() != -1).any():
            self.groups = checkpoint.take_groups(name, cols, self.count)

    def rows_of(self, values: Array, low: int, high: int) -> Array:
        """(high - low, count) of what is stored per block: each row's own."""
        picked: Array = values.reshape(-1, self.count)[np.arange(low, high) // self.height]
        return picked

    def scaled(
        self,
        part: Part,
        q: Callable[[int, int], Array],
        zeros: Callable[[int, int], Integers] | None,
        limits: tuple[int, int] | None,
    ) -> Scaled:
        groups = self.groups

        def scales(low: int, high: int) -> Floats:
            return self.scale.floats(self.rows_of(self.scale.array(), low, high))

        if zeros is None:
            return Scaled(self.name, part.where, self.rows, self.cols, groups, q, scales, limits, part.release)
        points = zeros

        def values(low: int, high: int) -> Array:
            return q(low, high) - spread(points(low, high), groups)

        assert limits is not None
        ends = [(int(z.min()), int(z.max())) for z in (points(*slab) for slab in slabs(self.rows, self.count))]
        limits = limits[0] - max(high for _, high in ends), limits[1] - min(low for low, _ in ends)
        return Scaled(self.name, part.where, self.rows, self.cols, groups, values, scales, limits, part.release)
