"""hd_unpack against gguf.quants.dequantize, bit for bit."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from tests.native.abi import ERR_ARGUMENT, ERR_FORMAT, Floats, Refused, core, unpack

FORMATS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
           "IQ4_NL", "IQ4_XS", "MXFP4"]  # fmt: skip
# Where a block keeps its float16 scales.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": []}  # fmt: skip

formats = pytest.mark.parametrize("name", FORMATS)
quantized = pytest.mark.parametrize("name", SCALES)
Bytes = npt.NDArray[np.uint8]


def type_of(name: str) -> tuple[GGMLQuantizationType, int, int]:
    """The type, values a block, bytes a block."""
    kind = GGMLQuantizationType[name]
    return kind, *GGML_QUANT_SIZES[kind]


def expected(name: str, data: Bytes) -> Floats:
    with np.errstate(all="ignore"):  # scales may be NaN, infinite, or overflow in a product
        return np.asarray(dequantize(data, type_of(name)[0]), np.float32)


def assert_same_bits(ours: Floats, theirs: Floats) -> None:
    """-0 is not 0, but a NaN is a NaN."""
    different = (ours.view(np.uint32) != theirs.view(np.uint32)) & ~(np.isnan(ours) & np.isnan(theirs))
    assert not different.any(), f"first at {np.argwhere(different)[0]}"


@formats
def test_any_bytes(name: str) -> None:
    """Every byte random: NaN and infinite scales included."""
    kind, values, size = type_of(name)
    data = np.random.default_rng(1).integers(0, 256, (64, 24 * size), np.uint8)
    assert_same_bits(unpack(kind, data, 64, 24 * values), expected(name, data))


@quantized
def test_finite_scales(name: str) -> None:
    kind, values, size = type_of(name)
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (1000, size), np.uint8)
    for at in SCALES[name]:
        scale = rng.normal(0, 0.05, 1000).astype(np.float16)
        scale[:4] = [0.0, -0.0, 6e-8, -65504]  # zeros, the smallest subnormal, the largest
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":
        blocks[:, 0] %= 252  # beyond, 6 * 2^(e - 127) is not a float32
    theirs = expected(name, blocks)
    assert np.isfinite(theirs).all()
    assert_same_bits(unpack(kind, blocks, 1000, values), theirs)


@quantized
def test_every_byte_in_every_place(name: str) -> None:
    """A block of one byte value, and blocks where one byte walks through all values."""
    kind, values, size = type_of(name)
    base = np.random.default_rng(3).integers(0, 256, size, np.uint8)
    for at in SCALES[name]:
        base[at : at + 2] = np.array([1.5], np.float16).view(np.uint8)
    walking = np.repeat(base[None], 256 * size, axis=0).reshape(size, 256, size)
    for place in range(size):
        walking[place, :, place] = np.arange(256)
    blocks = np.concatenate([walking.reshape(-1, size), np.repeat(np.arange(256, dtype=np.uint8)[:, None], size, 1)])
    assert_same_bits(unpack(kind, blocks, len(blocks), values), expected(name, blocks))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_sixteen_bit_float(name: str) -> None:
    data = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(1, -1)
    assert_same_bits(unpack(type_of(name)[0], data, 1, 65536), expected(name, data))


@formats
@given(data=st.data())
def test_shapes(name: str, data: st.DataObject) -> None:
    """Rows follow one another without padding, from any address."""
    kind, values, size = type_of(name)
    rows, blocks = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    shift = data.draw(st.integers(0, 3))
    raw = np.frombuffer(data.draw(st.binary(min_size=256, max_size=256)), np.uint8)
    packed = np.resize(raw, shift + rows * blocks * size)[shift:]
    theirs = expected(name, packed.copy().reshape(rows, blocks * size))
    assert_same_bits(unpack(kind, packed, rows, blocks * values), theirs)


@formats
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_wrong_number_of_bytes_is_refused(name: str, extra: int) -> None:
    kind, values, size = type_of(name)
    with pytest.raises(Refused, match=f"data has {6 * size + extra} bytes: 3 x {2 * values} values of {name}") as e:
        unpack(kind, np.zeros(6 * size + extra, np.uint8), 3, 2 * values)
    assert e.value.code == ERR_ARGUMENT


@quantized
def test_a_row_of_broken_blocks_is_refused(name: str) -> None:
    kind, values, size = type_of(name)
    with pytest.raises(Refused, match=f"cols is {values + 1}: a row of {name} holds whole blocks of {values}") as e:
        unpack(kind, np.zeros(2 * size, np.uint8), 1, values + 1)
    assert e.value.code == ERR_FORMAT


@pytest.mark.parametrize("number", [-1, 4, 9, 16, 24, 31, 40, 2**31 - 1])
def test_unknown_formats_are_refused(number: int) -> None:
    with pytest.raises(Refused, match=f"storage format {number} is not one") as e:
        unpack(number, np.zeros(4, np.uint8), 1, 1)
    assert e.value.code == ERR_FORMAT


@pytest.mark.parametrize(
    ("rows", "cols"), [(0, 256), (1, 0), (-1, 256), (1, -256), (2**62, 256), (2**32, 2**32), (1, 2**62)]
)
def test_impossible_shapes_are_refused(rows: int, cols: int) -> None:
    """Without reading or writing anything: the shape lies about an empty buffer."""
    message = ctypes.create_string_buffer(256)
    for name in FORMATS:
        status = core().hd_unpack(
            int(type_of(name)[0]), None, ctypes.c_size_t(0), ctypes.c_int64(rows), ctypes.c_int64(cols), None, message
        )
        assert status == ERR_ARGUMENT
