"""bitsandbytes: four bits as indices into a table of 16 numbers (nf4, fp4), and eight-bit integers by row (LLM.int8).

4 bits, a matrix of (out, in) cut into blocks of `blocksize` consecutive weights, rows one after another:
  weight                  bytes, two weights in each, the first in the high bits; any shape and dtype of that size
  weight.quant_map        float32 (16), the table
  weight.absmax           float32 (blocks), or uint8 when quantized itself ("double quantization"): then it is
                          nested_quant_map[absmax] * nested_absmax[block // nested_blocksize] + nested_offset
  weight.quant_state.bitsandbytes__nf4 (or __fp4)   JSON: shape, dtype, blocksize, quant_type, nested_*
  w = quant_map[index] * absmax, in float32, rounded once to the dtype that quant_state names.
8 bits: weight int8 (out, in), SCB float32 (out), weight_format 0 (rows as they are): w = q * SCB * (1 / 127), in this
order in float32, rounded to the checkpoint's dtype.
Sources: bitsandbytes' functional.py (QuantState.from_dict, dequantize_4bit, int8_vectorwise_dequant) and
backends/default/ops.py. No block format has these tables, and the scales are seldom float16: all are expanded.
"""

from __future__ import annotations

import math

import numpy as np

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.formats import table
from herder.weights.fields import Fields, short
from herder.weights.quantized.made import Computed, check_scales
from herder.weights.quantized.parts import Checkpoint, Floats, Part
from herder.weights.safetensors import parse_object

HARMLESS = (
    "load_in_4bit load_in_8bit _load_in_4bit _load_in_8bit llm_int8_threshold llm_int8_skip_modules "
    "llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight bnb_4bit_quant_type bnb_4bit_use_double_quant "
    "bnb_4bit_compute_dtype bnb_4bit_quant_storage modules_to_not_convert"
)

_STATE = ".weight.quant_state.bitsandbytes__"
_DTYPES = {"float32": table.F32, "float16": table.F16, "bfloat16": table.BF16}
MAX_STATE = 1 << 16  # bytes of JSON


def read(keys: Fields, checkpoint: Checkpoint) -> list[Computed]:
    """Every module with a `weight.quant_state.*` or an `SCB`. Raises ModelFileError, UnsupportedModel."""
    found = [_rows(checkpoint, module) for module in checkpoint.modules(".SCB")]
    for kind in ("nf4", "fp4"):
        found += [_Table(checkpoint, module, kind).matrix() for module in checkpoint.modules(_STATE + kind)]
    return found


def _rows(checkpoint: Checkpoint, module: str) -> Computed:
    weight = checkpoint.take_matrix(module + ".weight", ("I8",))
    rows, cols = weight.shape
    scb = checkpoint.take(module + ".SCB", ("F32",), (rows,))
    if module + ".weight_format" in checkpoint:
        layout = checkpoint.take(module + ".weight_format", ("U8",), (), (1,))
        if layout.array().any():
            raise UnsupportedModel(f"{layout.where} is {int(layout.array().max())}: only 0, row by row, is supported")
    inverse = np.float32(7.874015718698502e-3)  # 1 / 127

    check_scales(scb.where, scb.array())

    def products(low: int, high: int) -> Floats:
        product: Floats = weight.array()[low:high].astype(np.float32)
        product *= scb.array()[low:high, None]
        product *= inverse
        return product

    return Computed(module + ".weight", weight.where, rows, cols, products, None, weight.release)


class _Table:
    """One matrix of four-bit indices."""

    def __init__(self, checkpoint: Checkpoint, module: str, kind: str) -> None:
        self.name = name = module + ".weight"
        state = self._read_state(checkpoint, module, kind)
        shape = state.get("shape")
        ok = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in shape)
        if not ok:
            raise state.wrong("shape", shape, "expected [outputs, inputs]")
        self.rows, self.cols = shape
        self.block = state.integer("blocksize")
        dtype = state.text("dtype")
        if dtype not in _DTYPES:
            raise UnsupportedModel(f"{state.where}: dtype {short(dtype)} is not supported: one of {', '.join(_DTYPES)}")
        self.dtype = _DTYPES[dtype]
        count = self.rows * self.cols
        self.blocks = -(-count // self.block)
        self.weight = checkpoint.take(name, ("U8", "I8", "BF16", "F16", "F32"))
        if self.weight.info.bytes != -(-count // 2):
            raise ModelFileError(
                f"{self.weight.where} has {self.weight.info.bytes} bytes, but {self.rows} x {self.cols} weights of "
                f"four bits take {-(-count // 2)}: weights and quant_state disagree"
            )
        table_ = checkpoint.take(name + ".quant_map", ("F32",), (16,))
        self.map = table_.array().astype(np.float32)
        check_scales(table_.where, self.map)
        self.nested: tuple[Part, Part, int, np.float32] | None = None
        nested = name + ".nested_absmax" in checkpoint
        self.absmax = checkpoint.take(name + ".absmax", ("U8",) if nested else ("F32",), (self.blocks,))
        if nested:
            size = state.integer("nested_blocksize")
            state.neutral("nested_dtype", ("float32",), "scales of scales in another type")
            offset = np.float32(state.number("nested_offset", low=-math.inf))
            scales = checkpoint.take(name + ".nested_absmax", ("F32",), (-(-self.blocks // size),))
            codes = checkpoint.take(name + ".nested_quant_map", ("F32",), (256,))
            self.nested = scales, codes, size, offset
        if unknown := state.unread():
            raise UnsupportedModel(f"{state.where}: {short(unknown[0])} is not known: use a newer version of herder")

    def matrix(self) -> Computed:
        check_scales(self.absmax.where, self._block_scales(0, self.blocks))
        return Computed(
            self.name, self.weight.where, self.rows, self.cols, self._products, self.dtype, self.weight.release
        )

    def _read_state(self, checkpoint: Checkpoint, module: str, kind: str) -> Fields:
        part = checkpoint.take(module + _STATE + kind, ("U8",))
        if len(part.shape) != 1 or part.info.bytes > MAX_STATE:
            raise ModelFileError(f"{part.where} is {part.info.bytes} bytes of shape {short(part.shape)}: expected JSON")
        state = Fields(part.where, parse_object(part.raw().tobytes(), part.shard.path))
        if state.text("quant_type") != kind:
            raise state.wrong("quant_type", state.get("quant_type"), f"the tensor's name says {kind}")
        return state

    def _block_scales(self, first: int, last: int) -> Floats:
        """Of blocks first to last - 1."""
        stored = self.absmax.array()[first:last]
        if self.nested is None:
            return stored.astype(np.float32)
        scales, codes, size, offset = self.nested
        values: Floats = codes.array().astype(np.float32)[stored]
        values *= scales.array()[np.arange(first, last) // size]
        values += offset
        return values

    def _products(self, low: int, high: int) -> Floats:
        first, last = low * self.cols, high * self.cols
        raw = self.weight.raw()[first // 2 : -(-last // 2)]
        indices = np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)[first % 2 :][: last - first]
        block = first // self.block
        scales = self._block_scales(block, -(-last // self.block))
        product: Floats = self.map[indices]
        product *= scales[np.arange(first, last) // self.block - block]
        return product.reshape(high - low, self.cols)
