"""The GGUF reader against the gguf package, and against files that lie."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herder.core.errors import HerderError, ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights.gguf import GGUF, StringArray, open_parts
from tests.tiny import write_tiny_gguf
from tests.weights.gguf_bytes import BOOL, STRING, File, array_key, key, string, tensor, text_key, u32_key

I8, F32_VALUE, F64_VALUE = 1, 6, 12


def plain(value: Any) -> Any:
    return list(value) if not isinstance(value, str | int | float) else value


def assert_same_as_gguf(path: Path) -> None:
    """Every key, every tensor's place, and every tensor's bytes."""
    theirs = gguf.GGUFReader(path)
    with GGUF(path) as ours:
        fields = {name: f.contents() for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
        assert {name: plain(value) for name, value in ours.metadata.items()} == fields
        assert [(t.name, t.format.id, t.shape, t.offset, t.bytes) for t in ours.tensors] == [
            (t.name, int(t.tensor_type), tuple(map(int, t.shape)), int(t.data_offset), int(t.n_bytes))
            for t in theirs.tensors
        ]
        for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
            expected = other.data.tobytes()
            assert bytes(ours.view(mine)) == expected
            assert ctypes.string_at(ours.address(mine), min(64, mine.bytes)) == expected[:64]


@pytest.mark.slow  # the gguf package takes 5 s over the vocabulary
def test_the_default_model_reads_as_gguf_reads_it(smollm2: Path) -> None:
    assert_same_as_gguf(smollm2)


def test_a_tiny_model_with_many_formats(tmp_path: Path) -> None:
    formats = {"": "Q4_K", "q_proj": "Q6_K", "k_proj": "Q2_K", "v_proj": "Q3_K", "o_proj": "Q5_K", "gate": "IQ4_XS"}
    formats |= {"up": "MXFP4", "down": "IQ4_NL", "embed": "Q8_0", "lm_head": "BF16"}
    write_tiny_gguf(tmp_path / "m.gguf", dim=256, ffn_dim=256, layers=1, formats=formats, tied=False)
    assert_same_as_gguf(tmp_path / "m.gguf")


scalars = {
    gguf.GGUFValueType.UINT8: st.integers(0, 2**8 - 1), gguf.GGUFValueType.INT8: st.integers(-(2**7), 2**7 - 1),
    gguf.GGUFValueType.UINT16: st.integers(0, 2**16 - 1), gguf.GGUFValueType.INT16: st.integers(-(2**15), 2**15 - 1),
    gguf.GGUFValueType.UINT32: st.integers(0, 2**32 - 1), gguf.GGUFValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    gguf.GGUFValueType.UINT64: st.integers(0, 2**64 - 1), gguf.GGUFValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    gguf.GGUFValueType.FLOAT32: st.floats(allow_nan=False, width=32),
    gguf.GGUFValueType.FLOAT64: st.floats(allow_nan=False), gguf.GGUFValueType.BOOL: st.booleans(),
    gguf.GGUFValueType.STRING: st.text(max_size=40),
}  # fmt: skip


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_metadata_comes_back(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "any.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    wanted: dict[str, Any] = {"general.architecture": "llama"}
    for i, kind in enumerate(data.draw(st.lists(st.sampled_from(list(scalars)), max_size=8))):
        if data.draw(st.booleans()):
            value = data.draw(scalars[kind])
            writer.add_key_value(f"key.{i}", value, kind)
        else:
            value = data.draw(st.lists(scalars[kind], min_size=1, max_size=9))
            writer.add_key_value(f"key.{i}", value, gguf.GGUFValueType.ARRAY, sub_type=kind)
        wanted[f"key.{i}"] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUF(path) as ours:
        assert {name: plain(value) for name, value in ours.metadata.items()} == wanted


def test_version_2_is_laid_out_the_same(tmp_path: Path) -> None:
    path = tmp_path / "v2.gguf"
    write_tiny_gguf(path, layers=1)
    raw = bytearray(path.read_bytes())
    raw[4:8] = struct.pack("<I", 2)
    path.write_bytes(raw)
    assert_same_as_gguf(path)


def test_another_alignment(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for i in range(3):
        writer.add_tensor(f"t{i}", np.arange(5 + i, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same_as_gguf(path)


def read(tmp_path: Path, raw: bytes) -> GGUF:
    path = tmp_path / "lie.gguf"
    path.write_bytes(raw)
    return GGUF(path)


def test_strings_may_hold_any_bytes(tmp_path: Path) -> None:
    items = [b"", b"a", b"\xff\xfe", b"\xe2\x96", "▁ü".encode(), b"x" * 300, b"\0\0\0\0\0\0\0\0"]
    raw = File(keys=[array_key("tokens", STRING, len(items), b"".join(map(string, items)))]).build()
    with read(tmp_path, raw) as file:
        tokens = file.metadata["tokens"]
        assert isinstance(tokens, StringArray) and len(tokens) == len(items)
        assert tokens.raw() == items
        assert [token.encode("utf-8", "surrogateescape") for token in tokens] == items
        assert (tokens[1], tokens[-1], tokens[1:3]) == ("a", "\0" * 8, ["a", "\udcff\udcfe"])
        assert tokens == list(tokens) and repr(tokens) == "StringArray(7 strings)"


def test_a_long_array_reads_on_past_the_first_window(tmp_path: Path) -> None:
    items = [b"%d" % i * 9 for i in range(60_000)]  # about 3.5 MB, windows double from 1 MiB
    raw = File(keys=[array_key("a", STRING, len(items), b"".join(map(string, items))), u32_key("b", 7)]).build()
    with read(tmp_path, raw) as file:
        assert file.metadata["a"].raw() == items and file.metadata["b"] == 7


def test_nested_and_bool_arrays(tmp_path: Path) -> None:
    inner = struct.pack("<IQ", BOOL, 2) + b"\1\0"
    with read(tmp_path, File(keys=[array_key("a", 9, 2, inner + inner)]).build()) as file:
        assert file.metadata["a"] == [[True, False], [True, False]]


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", I8, 1) + b"\5"


HUGE = 2**64 - 1
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "begins with b''"),
    "magic": (File(magic=b"GGML").build(), "begins with b'GGML'.*not a GGUF"),
    "only the magic": (b"GGUF", "version needs 4 bytes"),
    "tensor count": (File(tensor_count=HUGE).build(), f"tensor count is {HUGE}"),
    "one tensor too many": (File(tensor_count=1).build(), "name of tensor 0 is empty"),
    "tensors without end": (File(tensor_count=40, alignment=1, data=b"").build(), "name of tensor 0 needs 8 bytes"),
    "key count": (File(key_count=HUGE).build(), f"metadata count is {HUGE}"),
    "one key too many": (File(key_count=2, data=b"").build(), "metadata key 1 is empty"),
    "key length": (File(keys=[struct.pack("<Q", 2**40)]).build(), "metadata key 0 is 1099511627776 bytes"),
    "string length": (File(keys=[key("k", STRING, struct.pack("<Q", HUGE))]).build(), f"'k' is {HUGE} bytes"),
    "string past the end": (File(keys=[key("k", STRING, struct.pack("<Q", 4000))]).build(), "'k' needs 4000 bytes"),
    "value type": (File(keys=[key("k", 13, b"")]).build(), "'k' has value type 13"),
    "bool": (File(keys=[key("k", BOOL, b"\2")]).build(), "'k' is a bool with value 2"),
    "array type": (File(keys=[array_key("k", 99, 3, b"")]).build(), "'k' has value type 99"),
    "array count": (File(keys=[array_key("k", I8, HUGE, b"")]).build(), f"'k' has {HUGE} elements"),
    "array of numbers past the end": (File(keys=[array_key("k", F64_VALUE, 2**22, b"")]).build(), "'k' needs 33554432"),
    "array of strings past the end": (File(keys=[array_key("k", STRING, 2**22, b"")]).build(), "'k' needs 33554432"),
    "array of arrays past the end": (File(keys=[array_key("k", 9, 2**22, b"")]).build(), "'k' needs 50331648"),
    "string in an array": (
        File(keys=[array_key("k", STRING, 2, string("a") + struct.pack("<Q", 2**62))]).build(), "'k' needs",
    ),
    "end of an array": (File(keys=[array_key("k", STRING, 3, string("a" * 999))], data=b"").build(), r"'k'\[1\]"),
    "depth": (File(keys=[key("k", 9, nested(40))]).build(), "'k' is nested deeper than 4"),
    "key twice": (File(keys=[u32_key("k", 1), u32_key("k", 1)]).build(), "key 1, 'k', appears twice"),
    "alignment 0": (File(keys=[u32_key("general.alignment", 0)]).build(), "general.alignment is 0"),
    "alignment 24": (File(keys=[u32_key("general.alignment", 24)]).build(), "general.alignment is 24"),
    "alignment of a string": (File(keys=[text_key("general.alignment", "32")]).build(), "general.alignment is '32'"),
    "tensor twice": (File(tensors=[tensor("t", (4,)), tensor("t", (4,), offset=32)]).build(), "1, 't', appears twice"),
    "no dimensions": (File(tensors=[tensor("t", ())]).build(), "'t' has 0 dimensions"),
    "many dimensions": (File(tensors=[tensor("t", (1,), dimensions=2**31)]).build(), "'t' has 2147483648 dimensions"),
    "zero shape": (File(tensors=[tensor("t", (4, 0))]).build(), r"'t' has shape \(4, 0\)"),
    "overflowing shape": (File(tensors=[tensor("t", (2**62, 4))]).build(), "'t' needs bytes"),
    "overflowing product": (File(tensors=[tensor("t", (2**32, 2**32, 2**32, 2**32))]).build(), "'t' needs bytes"),
    "shape of half a block": (File(tensors=[tensor("t", (33,), kind=2)]).build(), "rows of 33 weights, which Q4_0"),
    "type": (File(tensors=[tensor("t", (32,), kind=77)]).build(), "'t' has type id 77"),
    "offset past the end": (File(tensors=[tensor("t", (4,), offset=2**63)]).build(), "'t' needs bytes"),
    "offset off the grid": (File(tensors=[tensor("t", (4,), offset=8)]).build(), "'t' starts at 8"),
    "overlap": (File(tensors=[tensor("a", (64,)), tensor("b", (4,), offset=32)]).build(), "'a' and 'b' overlap"),
    "same place": (File(tensors=[tensor("a", (4,)), tensor("b", (4,))]).build(), "'a' and 'b' overlap"),
    "data past the end": (File(tensors=[tensor("t", (257,))]).build(), "'t' needs bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_named(tmp_path: Path, name: str) -> None:
    raw, message = LIES[name]
    with pytest.raises(ModelFileError, match=message) as caught:
        read(tmp_path, raw)
    assert "\n" not in str(caught.value) and "lie.gguf" in str(caught.value)


REFUSED: dict[str, tuple[bytes, str]] = {
    "version 1": (File(version=struct.pack("<I", 1)).build(), "GGUF version 1; supported are 2 and 3"),
    "version 4": (File(version=struct.pack("<I", 4)).build(), "GGUF version 4"),
    "big-endian": (File(version=struct.pack(">I", 3)).build(), "big-endian"),
    "IQ2_XXS": (File(tensors=[tensor("t", (256,), kind=16)]).build(), "'t' is stored as IQ2_XXS"),
    "I8": (File(tensors=[tensor("t", (4,), kind=24)]).build(), "'t' is stored as I8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, name: str) -> None:
    raw, message = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=message):
        read(tmp_path, raw)


def test_a_big_endian_file_of_the_writer_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match=r"big.gguf is a big-endian GGUF file: use the little-endian one"):
        GGUF(tmp_path / "big.gguf")


def test_names_with_newlines_stay_on_one_line(tmp_path: Path) -> None:
    raw = File(tensors=[tensor(b"a\nb\xff", (4, 0))]).build()
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path, raw)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # printable: no lone surrogates


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        GGUF(tmp_path / "no.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GGUF(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GGUF(tmp_path / "pipe.gguf")
    with pytest.raises(HerderError, match="not a path"):
        GGUF(tmp_path / "a\0b")


# Split models


def split(tmp_path: Path) -> list[Path]:
    """Three parts, by the gguf package's own splitting."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full(8, i, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("*.gguf"))


def test_a_split_model_opens_by_its_first_part(tmp_path: Path) -> None:
    paths = split(tmp_path)
    assert [p.name for p in paths] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    parts = open_parts(paths[0])
    values = {t.name: np.frombuffer(part.view(t), np.float32)[0] for part in parts for t in part.tensors}
    assert values == {f"t{i}": i for i in range(5)}
    for part in parts:
        part.close()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.gguf is missing \(the model has 3 parts\)"):
        open_parts(paths[0])


def test_another_part_names_the_first(tmp_path: Path) -> None:
    paths = split(tmp_path)
    with pytest.raises(ModelFileError, match=r"is part 2 of 3: give the first, model-00001-of-00003\.gguf"):
        open_parts(paths[1])


def test_a_part_that_was_renamed_is_noticed(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(ModelFileError, match=r"00003-of-00003\.gguf says it is part 1 of 3"):
        open_parts(paths[0])
    paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(ModelFileError, match="is one of 3 parts"):
        open_parts(tmp_path / "other.gguf")


# A file that changes


def test_a_file_truncated_after_opening_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path)
    with GGUF(path) as file:
        file.file.verify_unchanged()
        os.truncate(path, 100)
        with pytest.raises(ModelFileError, match="changed while it was being read"):
            file.file.verify_unchanged()


def test_a_file_rewritten_in_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path)
    with GGUF(path) as file:
        os.utime(path, ns=(0, 0))
        with pytest.raises(ModelFileError, match="changed"):
            file.file.verify_unchanged()


def test_a_file_truncated_before_it_is_mapped_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path)
    with GGUF(path) as file:
        os.truncate(path, 5000)
        with pytest.raises(ModelFileError, match="changed"):
            file.address(file.tensors[0])


def test_a_file_replaced_by_rename_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = write_tiny_gguf(path)
    with GGUF(path) as file:
        (tmp_path / "new").write_bytes(b"other")
        (tmp_path / "new").rename(path)
        file.file.verify_unchanged()
        embedding = next(t for t in file.tensors if t.name == "token_embd.weight")
        assert bytes(file.view(embedding)) == model.stored["model.embed_tokens.weight"].tobytes()


def test_views_outlive_close_and_released_pages_come_back(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path)
    file = GGUF(path)
    view = file.view(file.tensors[0])
    before = bytes(view)
    file.file.release(0, file.file.size)
    assert bytes(view) == before
    file.close()
    file.close()
    assert bytes(view) == before
