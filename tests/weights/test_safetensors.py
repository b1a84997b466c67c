"""The safetensors reader against the safetensors package, and against files that lie."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from herder.core.errors import ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights.safetensors import DTYPE_BITS, MAX_HEADER, SafeTensors

arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=4)
)


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != "__metadata__"), arrays, min_size=1, max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reads_what_the_package_writes(tmp_path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    path = tmp_path / "any.safetensors"
    save_file(tensors, path, {"format": "np"})
    with SafeTensors(path) as file:
        assert {t.name: (t.shape, bytes(file.view(t))) for t in file.tensors} == {
            name: (value.shape, value.tobytes()) for name, value in tensors.items()
        }


def test_a_tensor_has_an_address(tmp_path: Path) -> None:
    import ctypes

    save_file({"a": np.arange(6, dtype=np.float32)}, tmp_path / "a.safetensors")
    with SafeTensors(tmp_path / "a.safetensors") as file:
        assert ctypes.string_at(file.address(file.tensors[0]), 24) == np.arange(6, dtype="<f4").tobytes()


def build(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def info(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DATA = bytes(8)
TWO = {"a": info(), "b": info(offsets=(8, 16))}
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is 0 bytes long, too short"),
    "short": (b"1234567", "is 7 bytes long, too short"),
    "header past the end": (build({"a": info()}, DATA, length=2**63), "says its header is 9223372036854775808 bytes"),
    "header too long": (build(b"{" + b" " * MAX_HEADER + b"}"), "says its header is"),
    "not JSON": (build(b"{]"), "not valid JSON"),
    "not UTF-8": (build(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (build([1, 2]), "not a JSON object"),
    "deep": (build(b"[" * 100_000), "nested too deep"),
    "long number": (build(b'{"a": ' + b"1" * 10_000 + b"}"), "not valid JSON"),
    "names twice": (build(b'{"a": 1, "a": 2}'), "'a' appears twice"),
    "no tensors": (build({}), "holds no tensors"),
    "metadata": (build({"__metadata__": {"a": 1}, "a": info()}, DATA), "__metadata__ {'a': 1}"),
    "not an object": (build({"a": 3}, DATA), "'a' described by 3"),
    "key missing": (build({"a": {"dtype": "F32", "shape": [2]}}, DATA), "'a' described by"),
    "key unknown": (build({"a": {**info(), "stride": 1}}, DATA), "'a' described by"),
    "shape of floats": (build({"a": info(shape=[2.0])}, DATA), "'a' with shape"),
    "negative shape": (build({"a": info(shape=[-2])}, DATA), "'a' with shape"),
    "shape of bools": (build({"a": info(shape=[True])}, DATA), "'a' with shape"),
    "huge shape": (build({"a": info(shape=[2**62, 2**62])}, DATA), "which is not 8 bytes"),
    "many dimensions": (build({"a": info(shape=[1] * 9)}, DATA), "'a' with shape"),
    "offsets reversed": (build({"a": info(offsets=[8, 0])}, DATA), "'a' with data_offsets"),
    "three offsets": (build({"a": info(offsets=[0, 4, 8])}, DATA), "'a' with data_offsets"),
    "negative offset": (build({"a": info(offsets=[-8, 0])}, DATA), "'a' with data_offsets"),
    "past the end": (build({"a": info(offsets=[0, 8])}, DATA[:4]), "'a' that ends at byte"),
    "wrong size": (build({"a": info(shape=[3])}, DATA), "of F32 .* which is not 8 bytes"),
    "half a byte": (build({"a": info("F4", [3], [0, 1])}, DATA[:1]), "which is not 1 bytes"),
    "gap before": (build({"a": info(offsets=[4, 12])}, bytes(12)), "has 4 bytes before its first tensor 'a'"),
    "gap": (build({"a": info(), "b": info(offsets=(12, 20))}, bytes(20)), "'a' and 'b', which have a gap"),
    "overlap": (build({"a": info(), "b": info(offsets=(4, 12))}, bytes(12)), "'a' and 'b', which overlap"),
    "same place": (build({"a": info(), "b": info()}, DATA), "'a' and 'b', which overlap"),
    "bytes after the end": (build(TWO, bytes(20)), "should end at byte"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_named(tmp_path: Path, name: str) -> None:
    raw, message = LIES[name]
    path = tmp_path / "lie.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match=message) as caught:
        SafeTensors(path)
    assert "\n" not in str(caught.value) and "lie.safetensors" in str(caught.value) and len(str(caught.value)) < 500


def test_unknown_dtypes_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"a": info("F128")}, DATA))
    with pytest.raises(UnsupportedModel, match="tensor 'a' of dtype 'F128'"):
        SafeTensors(path)


def test_every_dtype_of_the_package_is_known(tmp_path: Path) -> None:
    """Each is written by the package; sub-byte ones by their storage."""
    names = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16"}
    names |= {"BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64", "I64": "int64"}
    names |= {"U64": "uint64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
    data = np.zeros(64, np.uint8)
    for ours, theirs in names.items():
        count = 64 * 8 // DTYPE_BITS[ours]
        spec = safetensors.TensorSpec(dtype=theirs, shape=(count,), data_ptr=data.ctypes.data, data_len=64)
        safetensors.serialize_file({"t": spec}, tmp_path / "t.safetensors", None)
        with SafeTensors(tmp_path / "t.safetensors") as file:
            assert (file.tensors[0].dtype, file.tensors[0].bytes) == (ours, 64)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32)}, path)
    with SafeTensors(path) as file:
        os.truncate(path, 40)
        with pytest.raises(ModelFileError, match="changed"):
            file.file.verify_unchanged()
        with pytest.raises(ModelFileError, match="changed"):
            file.address(file.tensors[0])
    with pytest.raises(ModelNotFound):
        SafeTensors(tmp_path / "none.safetensors")
