"""Our writers, read by the packages of the formats' makers."""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from herder.core.errors import StorageError
from herder.formats import table
from herder.formats.table import Format
from herder.weights.gguf import GGUF
from herder.weights.output import Output
from herder.weights.torch_file import TorchFile
from herder.weights.write_gguf import write_gguf
from herder.weights.write_safetensors import index_of, shards, write_safetensors
from herder.weights.write_torch import write_torch

VALUES = {
    "a": np.arange(96, dtype=np.float32).reshape(3, 32), "b": np.linspace(-1, 1, 7, dtype=np.float32),
    "c": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
}  # fmt: skip


def outputs() -> list[Output]:
    def one(name: str, values: np.ndarray[Any, Any]) -> Output:
        fmt = table.F32 if values.dtype == np.float32 else table.F16

        def pieces() -> Iterator[memoryview | bytes]:
            raw = values.tobytes()
            yield raw[:5]  # pieces of any length, views or bytes
            yield memoryview(raw)[5:]

        return Output(name, fmt, values.shape, pieces)

    return [one(name, values) for name, values in VALUES.items()]


METADATA = {
    "general.architecture": "llama", "x.flag": True, "x.count": 7, "x.number": 0.5, "x.words": ["a", b"\xff", "\u00e9"],
    "x.integers": array("i", [-1, 2]), "x.floats": array("f", [0.25]), "x.flags": [True, False], "x.none": [],
}  # fmt: skip


def test_gguf(tmp_path: Path) -> None:
    path, seen = tmp_path / "x.gguf", []
    with open(path, "wb") as file:
        write_gguf(file, METADATA, outputs(), seen.append)
    assert sum(seen) == sum(values.nbytes for values in VALUES.values())
    reader = gguf.GGUFReader(path)
    assert {tensor.name: tensor.data.tolist() for tensor in reader.tensors} == {
        n: v.tolist() for n, v in VALUES.items()
    }
    assert reader.fields["x.flag"].contents() is True
    assert reader.fields["x.integers"].contents() == [-1, 2]
    assert bytes(reader.fields["x.words"].parts[reader.fields["x.words"].data[1]]) == b"\xff"
    with GGUF(path) as ours:
        expected = {key: value for key, value in METADATA.items() if key != "x.words"}
        assert {key: ours.metadata[key] for key in expected} == expected
        assert ours.metadata["x.words"].raw() == [b"a", b"\xff", "\u00e9".encode()]


def test_safetensors_and_shards(tmp_path: Path) -> None:
    files = shards(outputs(), 400)
    assert list(files) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = index_of(files)
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in VALUES.values())
    for name, group in files.items():
        with open(tmp_path / name, "wb") as file:
            write_safetensors(file, group, lambda _: None)
        with safe_open(tmp_path / name, "np") as theirs:
            assert set(theirs.keys()) == {key for key, value in index["weight_map"].items() if value == name}
            for key in list(theirs.keys()):
                np.testing.assert_array_equal(theirs.get_tensor(key), VALUES[key])
            assert theirs.metadata() == {"format": "pt"}
    assert list(shards(outputs(), 10**9)) == ["model.safetensors"]
    assert len(shards(outputs(), 1)) == 3


@pytest.mark.oracle
def test_torch_loads_what_was_written(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "x.pth"
    bits = np.array([[0x3F80, 0xC040]], np.uint16)
    halves = Output("d", table.BF16, (1, 2), lambda: iter((bits.tobytes(),)))
    with open(path, "wb") as file:
        write_torch(file, [*outputs(), halves], lambda _: None, {"tied": "a"})
    state = torch.load(path, weights_only=True)
    assert list(state) == ["a", "b", "c", "d", "tied"]
    assert state["d"].tolist() == [[1.0, -3.0]]
    assert state["tied"].data_ptr() == state["a"].data_ptr()
    for name, values in VALUES.items():
        assert (state[name].numpy() == values).all()
        assert state[name].is_contiguous()
    with TorchFile(path) as ours:
        assert {name: tensor.shape for name, tensor in ours.tensors.items()} == {
            n: tuple(t.shape) for n, t in state.items()
        }


@pytest.mark.parametrize("fmt", [table.F32, table.Q8_0])
def test_a_tensor_of_the_wrong_length_is_not_written(fmt: Format) -> None:
    short = Output("x", fmt, (2, 32), lambda: iter((bytes(10),)))
    with pytest.raises(StorageError, match="tensor x gave 10 bytes, not"):
        write_gguf(io.BytesIO(), {}, [short], lambda _: None)
