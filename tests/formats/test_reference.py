"""Reference unpack and pack against the `gguf` package, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from herder.core.errors import ModelFileError, NumericError, UnsupportedModel
from herder.formats import reference, table
from herder.formats.table import Format
from herder.weights.gguf import GGUF

FORMATS = pytest.mark.parametrize("fmt", table.FORMATS, ids=lambda fmt: fmt.name)
PACKABLE = pytest.mark.parametrize("fmt", reference.PACKABLE, ids=lambda fmt: fmt.name)

# Byte offsets of the float16 numbers in a block; random bits there could be NaN, which compares unequal to itself.
HALVES = {
    "F16": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def random_rows(fmt: Format, rows: int, cols: int, seed: int) -> NDArray[np.uint8]:
    """Random bits with finite scales: any sign, from subnormal to large."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * cols // fmt.block, fmt.block_bytes), dtype=np.uint8)
    for offset in HALVES.get(fmt.name, ()):
        bits = rng.integers(0, 0x7C00, len(blocks), dtype=np.uint16) | (rng.integers(0, 2, len(blocks)) << 15)
        blocks[:, offset : offset + 2] = bits.astype("<u2").view(np.uint8).reshape(-1, 2)
    if fmt is table.F32 or fmt is table.BF16:
        blocks[:, -1] &= 0xBF  # an exponent below 128: never NaN
    return blocks.reshape(rows, -1)


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@FORMATS
def test_unpack_equals_gguf_bit_for_bit(fmt: Format) -> None:
    rows = random_rows(fmt, 64, 1024, seed=fmt.id)
    ours = reference.unpack(fmt, rows, 64, 1024)
    with np.errstate(over="ignore"):  # MXFP4's largest scale
        theirs = gguf.dequantize(rows, Quant(fmt.id)).reshape(64, 1024)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(bits(ours), bits(theirs))


@FORMATS
@settings(max_examples=20)
@given(st.data())
def test_unpack_equals_gguf_on_any_bits(fmt: Format, data: st.DataObject) -> None:
    """Also NaN and infinite scales: the same numbers, and NaN where they have NaN."""
    raw = np.frombuffer(data.draw(st.binary(min_size=2 * fmt.block_bytes, max_size=2 * fmt.block_bytes)), np.uint8)
    with np.errstate(all="ignore"):
        ours = reference.unpack(fmt, raw, 2, fmt.block)
        theirs = gguf.dequantize(raw.reshape(2, -1), Quant(fmt.id)).reshape(2, fmt.block)
    np.testing.assert_array_equal(ours, theirs)


def test_unpack_equals_gguf_on_the_default_models_tensors(smollm2: Path) -> None:
    with GGUF(smollm2) as file:
        tensors = {tensor.format: tensor for tensor in file.tensors}  # the last of each format
        assert {fmt.name for fmt in tensors} == {"F32", "Q4_1", "Q8_0"}
        for fmt, tensor in tensors.items():
            cols, rows = tensor.shape[0], math.prod(tensor.shape[1:])
            raw = np.frombuffer(file.view(tensor), np.uint8)
            theirs = gguf.dequantize(raw.reshape(rows, -1), Quant(fmt.id)).reshape(rows, cols)
            np.testing.assert_array_equal(bits(reference.unpack(fmt, raw, rows, cols)), bits(theirs))


@PACKABLE
@pytest.mark.parametrize("scale", [1e-9, 0.02, 1.0, 100.0])
def test_pack_equals_gguf_bit_for_bit(fmt: Format, scale: float) -> None:
    rng = np.random.default_rng(fmt.id)
    values = (scale * rng.standard_normal((32, 256))).astype(np.float32)
    values[0] = 0
    values[1] = scale
    values[2, ::3] = -scale
    theirs = np.ascontiguousarray(gguf.quantize(values, Quant(fmt.id))).view(np.uint8).reshape(32, -1)
    np.testing.assert_array_equal(reference.pack(fmt, values), theirs)


@PACKABLE
def test_round_trip_stays_within_a_step(fmt: Format) -> None:
    """A weight moves by at most half a step of its block's grid, plus what the float16 scale costs."""
    values = np.random.default_rng(1).standard_normal((16, 512)).astype(np.float32)
    back = reference.unpack(fmt, reference.pack(fmt, values), 16, 512)
    blocks = values.reshape(-1, max(fmt.block, 32))
    spread = np.ptp(blocks, axis=1) if fmt.name.endswith("_1") else np.abs(blocks).max(axis=1)
    steps = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127, "F16": 1024, "BF16": 128, "F32": np.inf}
    # the end of a symmetric range with one step fewer is cut to it: a whole step at most
    reach = (1.0 if fmt.name in ("Q4_0", "Q5_0") else 0.5) * spread / steps[fmt.name]
    half = 2e-3 * np.abs(blocks).max(axis=1) if fmt.quantized else 0
    assert (np.abs(back - values).reshape(blocks.shape).max(axis=1) <= reach + half + 1e-12).all()


@PACKABLE
def test_packing_what_was_unpacked_changes_nothing(fmt: Format) -> None:
    values = np.random.default_rng(2).standard_normal((8, 256)).astype(np.float32)
    once = reference.unpack(fmt, reference.pack(fmt, values), 8, 256)
    twice = reference.unpack(fmt, reference.pack(fmt, once), 8, 256)
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-3 * np.abs(once).max() if fmt.quantized else 0)


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([[1.00390625, 1.01171875, -0.0, 3.4028235e38]], np.float32)[:, :3]
    np.testing.assert_array_equal(
        reference.unpack(table.BF16, reference.pack(table.BF16, values), 1, 3), [[1.0, 1.015625, -0.0]]
    )


def test_mxfp4_extremes() -> None:
    """The smallest scale is a subnormal, the largest overflows only with the largest digits."""
    low = reference.unpack(table.MXFP4, bytes([0] + [0x11] * 16), 1, 32)
    assert low[0, 0] == 2.0**-128
    high = reference.unpack(table.MXFP4, bytes([254] + [0x12] * 16), 1, 32)
    assert (high[0, 0], high[0, 16]) == (2.0**127, 2.0**126)


def test_refusals() -> None:
    with pytest.raises(ModelFileError, match="35 bytes are not 1 x 64 weights of Q4_0"):
        reference.unpack(table.Q4_0, bytes(35), 1, 64)
    with pytest.raises(ModelFileError):
        reference.unpack(table.Q4_K, bytes(144), 2, 128)
    with pytest.raises(UnsupportedModel, match="Q4_K"):
        reference.pack(table.Q4_K, np.zeros((1, 256), np.float32))
    with pytest.raises(UnsupportedModel, match="33"):
        reference.pack(table.Q8_0, np.zeros((1, 33), np.float32))
    with pytest.raises(NumericError, match="NaN"):
        reference.pack(table.Q8_0, np.full((1, 32), np.nan, np.float32))
    for fmt in (table.F16, table.Q4_0, table.Q4_1, table.Q8_0, table.BF16):
        with pytest.raises(NumericError, match="overflow"):
            reference.pack(fmt, np.linspace(3.4e38, -3.4e38, 32, dtype=np.float32)[None])
