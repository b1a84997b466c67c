"""Files of torch.save: where their tensors lie, and what is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.weights.torch_file import TorchFile
from tests.weights.meta_files import state, tensor, write_archive, write_torch

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)
GOOD = {"data.pkl": state({"a": tensor("FloatStorage", "0", 24, 0, (4, 6), (6, 1))}), "data/0": VALUES.tobytes()}


def read(file: TorchFile, name: str, dtype: str = "<f4") -> Any:
    found = file.tensors[name]
    steps = [step * np.dtype(dtype).itemsize for step in found.strides]
    stored = np.frombuffer(file.file.view(found.offset, file.file.size - found.offset), np.uint8)
    usable = stored[: stored.size // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(usable, found.shape, steps).copy()


def refused(path: Path, message: str, kind: type[HerderError] = ModelFileError) -> None:
    with pytest.raises(kind, match=message) as caught:
        TorchFile(path)
    assert "\n" not in str(caught.value)


def test_tensors_lie_in_the_file(tmp_path: Path) -> None:
    write_torch(tmp_path / "a.pth", {"a": ("F32", VALUES), "b": ("I8", VALUES.astype(np.int8))}, {"c": "a"})
    with TorchFile(tmp_path / "a.pth") as file:
        np.testing.assert_array_equal(read(file, "a"), VALUES)
        np.testing.assert_array_equal(read(file, "b", "i1"), VALUES)
        assert file.tensors["c"].offset == file.tensors["a"].offset
        assert {name: t.dtype for name, t in file.tensors.items()} == {"a": "F32", "b": "I8", "c": "F32"}


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_that_torch_saved(tmp_path: Path, protocol: int) -> None:
    """Every dtype; a transpose, a slice, a shared storage, an expanded vector, a scalar, an empty one, a parameter, a
    state_dict with its metadata, a buffer in memory."""
    import torch

    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn)
    base = torch.arange(24).reshape(4, 6)
    saved: dict[str, Any] = {str(dtype).removeprefix("torch."): base.to(dtype) for dtype in dtypes}
    kept = base.float()
    saved |= {"turned": kept.t(), "slice": kept[1:3, 2:5], "same": kept, "scalar": torch.tensor(2.5)}
    saved |= {"expanded": torch.tensor([7.0]).expand(5), "empty": torch.zeros(0, 3)}
    saved["parameter"] = torch.nn.Parameter(kept.clone())
    saved["fp8"] = torch.nn.Parameter(base.to(torch.float8_e4m3fn), requires_grad=False)
    saved["layer._extra_state"] = io.BytesIO(b"state \xff")
    state_dict = torch.nn.Linear(6, 4).state_dict()
    state_dict.update(saved)
    torch.save(state_dict, tmp_path / "a.pth", pickle_protocol=protocol)
    with TorchFile(tmp_path / "a.pth") as file:
        assert file.ignored == ("layer._extra_state",)
        assert file.tensors["turned"].offset == file.tensors["same"].offset
        assert set(file.tensors) == set(state_dict) - {"layer._extra_state"}
        for name, found in file.tensors.items():
            wanted = state_dict[name].detach().contiguous()
            bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.element_size()]
            got = read(file, name, f"<u{wanted.element_size()}") if 0 not in found.shape else np.zeros((0, 3))
            assert got.tobytes() == wanted.view(bits).numpy().tobytes(), name
            assert found.shape == tuple(wanted.shape)


@pytest.mark.oracle
def test_the_format_before_zip_archives_is_named(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pth", "format of torch before 1.6: load it there", UnsupportedModel)


def lied(tmp_path: Path, opcodes: bytes, message: str) -> None:
    write_archive(tmp_path / "a.pth", {**GOOD, "data.pkl": state({"a": opcodes})})
    refused(tmp_path / "a.pth", message)


def test_tensors_outside_their_storage_are_named(tmp_path: Path) -> None:
    lied(tmp_path, tensor("FloatStorage", "1", 24, 0, (4, 6), (6, 1)), "in storage '1', which it does not hold")
    lied(tmp_path, tensor("FloatStorage", "0", 25, 0, (4, 6), (6, 1)), "says 25 elements are in storage '0' of 96")
    lied(tmp_path, tensor("HalfStorage", "0", 24, 0, (4, 6), (6, 1)), "says 24 elements are in storage '0' of 96")
    lied(tmp_path, tensor("FloatStorage", "0", 24, 1, (4, 6), (6, 1)), "reaches behind the 96 bytes of its storage")
    lied(tmp_path, tensor("FloatStorage", "0", 24, 0, (4, 6), (7, 1)), "reaches behind the 96 bytes of its storage")
    lied(tmp_path, tensor("FloatStorage", "0", 24, 0, (2,), (1 << 62,)), "reaches behind the 96 bytes of its storage")
    lied(tmp_path, tensor("FloatStorage", "../0", 24, 0, (4, 6), (6, 1)), "which it does not hold")


def test_what_is_no_state_dict_is_named(tmp_path: Path) -> None:
    for members, message in (
        ({**GOOD, "data.pkl": b"\x80\x02]."}, "holds a list, not a dict of tensors"),
        ({**GOOD, "data.pkl": state({"a": b"K\x01"})}, "has 'a' that is a int, not a tensor"),
        ({**GOOD, "data.pkl": state({"": b"N"})}, "has a tensor named ''"),
        ({**GOOD, "data.pkl": b"\x80\x02}K\x01Ns."}, "has a tensor named 1"),
        ({"data/0": b""}, "has 0 files data.pkl"),
        ({**GOOD, "more/data.pkl": b""}, "has 2 files data.pkl"),
    ):
        write_archive(tmp_path / "a.pth", members)
        refused(tmp_path / "a.pth", message)
    write_archive(tmp_path / "a.pth", {**GOOD, "byteorder": b"big"})
    refused(tmp_path / "a.pth", "holds big-endian numbers", UnsupportedModel)


def test_archives_that_are_not_what_torch_writes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write_archive(path, GOOD, zipfile.ZIP_DEFLATED)
    refused(path, "'archive/data.pkl' compressed or encrypted")
    path.write_bytes(b"")
    refused(path, "no zip directory at its end")
    path.write_bytes(b"\x80\x02}q\x00.")
    refused(path, "no zip directory at its end")


def patched(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))


def set32(marker: bytes, at: int, value: int) -> Callable[[bytearray], None]:
    """Writes a field of the first record that begins with the marker."""

    def change(data: bytearray) -> None:
        struct.pack_into("<I", data, data.index(marker) + at, value)

    return change


ENTRY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


@pytest.mark.parametrize(("change", "message"), [
    (set32(ENTRY, 24, 1 << 30), "bytes stored in"),
    (set32(ENTRY, 42, 1 << 30), "outside its"),
    (set32(ENTRY, 42, 1), "no file where .* should begin"),
    (set32(ENTRY, 42, 0xFFFFFFFF), "without the zip64 field it needs"),
    (set32(LOCAL, 18, 5), "in two ways"),
    (set32(LOCAL, 26, 3), "in two ways"),
    (set32(END, 16, 0), "directory entry that is none"),
    (set32(END, 12, 1 << 30), "at most 16777216"),
    (set32(END, 12, 10), "files are listed in 10 bytes"),
    (set32(END, 16, 0xFFFFFFFF), "no zip64 directory, although it says so"),
    (set32(END, 4, 1), "one of several parts"),
])  # fmt: skip
def test_lies_in_the_directory_are_named(tmp_path: Path, change: Callable[[bytearray], None], message: str) -> None:
    write_archive(tmp_path / "a.pth", GOOD)
    patched(tmp_path / "a.pth", change)
    refused(tmp_path / "a.pth", message)


def test_files_that_overlap_are_named(tmp_path: Path) -> None:
    """The directory and the local header agree on a size that reaches into the next file."""
    path = tmp_path / "a.pth"
    write_archive(path, {**GOOD, "data/1": VALUES.tobytes()})

    def longer(data: bytearray) -> None:
        local = data.index(b"archive/data/0")
        entry = data.index(b"archive/data/0", local + 1)
        for at in (local - 30 + 18, entry - 46 + 20):
            struct.pack_into("<II", data, at, 100, 100)

    patched(path, longer)
    refused(path, "'archive/data/0' and 'archive/data/1', which overlap")


def test_zip64_records_are_read(tmp_path: Path) -> None:
    """As writers of files over 4 GiB have them: sizes in extra fields, the directory's place in a record."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in GOOD.items():
            with archive.open(f"archive/{name}", "w", force_zip64=True) as file:
                file.write(data)
    data = path.read_bytes()
    at = data.index(END)
    count, length, start = struct.unpack_from("<HLL", data, at + 10)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    end = struct.pack("<4s4H2LH", END, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:at] + record + locator + end)
    with TorchFile(path) as file:
        np.testing.assert_array_equal(read(file, "a"), VALUES)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_anywhere_it_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, or cut short at any byte: a file, or one line that names it; never more than its bytes."""
    path = tmp_path / "a.pth"
    write_archive(path, GOOD)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        with TorchFile(path) as file:
            for name, found in file.tensors.items():
                assert 0 <= found.offset <= file.file.size
                if np.prod(found.shape, dtype=object) < 1 << 16 and found.dtype == "F32":
                    read(file, name)
    except HerderError as error:
        assert "\n" not in str(error) and str(path) in str(error)
