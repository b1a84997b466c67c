"""AWQ, version "gemm": w = scale * (q - zero) in 4 bits, packed along the outputs.

Layout of AutoAWQ's WQLinear_GEMM, for a linear layer of `in` inputs and `out` outputs:
  qweight  int32 (in, out / 8)      nibble i of a word (bits 4i to 4i + 3) is output 8j + ORDER[i]
  qzeros   int32 (groups, out / 8)  the same order
  scales   float (groups, out)      a group is group_size consecutive inputs
Zero points lie anywhere from 0 to 15, so q - zero needs five bits: Q5_0 holds it. Where expanded: as for GPTQ.
"""

from __future__ import annotations

import numpy as np

from herder.core.errors import UnsupportedModel
from herder.weights.fields import Fields, short
from herder.weights.quantized import gptq
from herder.weights.quantized.made import Scaled, evenly, slabs, spread
from herder.weights.quantized.parts import FLOATS, Array, Checkpoint, Floats, Integers

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

# What other programs do with the weights; transformers' AwqConfig writes GPTQ's keys too.
HARMLESS = f"{gptq.HARMLESS} desc_act do_fuse fuse_max_seq_len modules_to_fuse duo_scaling"


def read(keys: Fields, checkpoint: Checkpoint) -> list[Scaled]:
    """Every module that has a `qweight`. Raises ModelFileError, UnsupportedModel."""
    bits = keys.integer("bits", keys.integer("w_bit", 4))
    if bits != 4:
        raise UnsupportedModel(f"{keys.where}: AWQ of {bits} bits is not supported; supported is 4")
    version = keys.text("version", keys.text("format", "gemm")).lower()
    keys.get("format")
    if version != "gemm":
        raise UnsupportedModel(f"{keys.where}: AWQ version {short(version)} is not supported; supported is gemm")
    keys.neutral("zero_point", (True,), "AWQ without zero points")
    size = keys.get("group_size") if keys.get("group_size") is not None else keys.get("q_group_size")
    group = None if size == -1 else keys.integer("group_size", keys.integer("q_group_size", 128))
    modules = checkpoint.modules(".qweight")
    for module in modules:
        checkpoint.drop_zero_bias(module)
    return [_linear(checkpoint, module, group) for module in modules]


def _linear(checkpoint: Checkpoint, module: str, group: int | None) -> Scaled:
    packed = checkpoint.take_matrix(module + ".qweight", ("I32",))
    cols, rows = packed.shape[0], packed.shape[1] * 8
    size = group or cols
    count = -(-cols // size)
    scales = checkpoint.take(module + ".scales", FLOATS, (count, rows))
    qzeros = checkpoint.take(module + ".qzeros", ("I32",), (count, rows // 8))
    groups = evenly(cols, size)

    def values(low: int, high: int) -> Integers:
        return _outputs(packed.array(), low, high) - spread(_outputs(qzeros.array(), low, high), groups)

    def scales_of(low: int, high: int) -> Floats:
        return scales.floats(scales.array()[:, low:high].T)

    ends = [(int(z.min()), int(z.max())) for z in (_outputs(qzeros.array(), *rows_) for rows_ in slabs(rows, count))]
    limits = -max(high for _, high in ends), 15 - min(low for low, _ in ends)
    return Scaled(module + ".weight", packed.where, rows, cols, groups, values, scales_of, limits, packed.release)


def _outputs(words: Array, low: int, high: int) -> Integers:
    """(high - low, n) integers of outputs low to high - 1 from (n, out / 8) words."""
    first = low // 8
    part = np.ascontiguousarray(words[:, first : -(-high // 8)].T).view(np.uint32)
    outputs = np.empty((len(part), 8, part.shape[1]), np.int16)
    for nibble, output in enumerate(ORDER):
        outputs[:, output] = part >> np.uint32(4 * nibble) & np.uint32(15)
    return outputs.reshape(-1, part.shape[1])[low - first * 8 : high - first * 8]
