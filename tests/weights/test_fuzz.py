"""Whatever bytes a model file holds, opening it ends in a model or in one line that says what is wrong.

Each mutated file is opened, its tensors are walked and their first and last bytes read at their addresses: a crash or
any exception but a HerderError fails the test. Short deterministic runs here; longer random ones under `-m slow`.
"""

from __future__ import annotations

import ctypes
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herder.core.errors import HerderError
from herder.weights.rope import inv_freq
from herder.weights.safetensors import SafeTensors
from herder.weights.source import TensorSource, open_model
from herder.weights.summary import summarize
from tests.tiny import write_tiny_gguf, write_tiny_hf

# Numbers that readers trip over: around zero, around powers of two, the sign bit, and the largest.
NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    9,
    31,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


def survive(path: Path) -> bool:
    """Opens and touches everything. True when the file was accepted."""
    try:
        with open_model(path) as model:
            for tensor in model.load():
                touch(tensor)
                if tensor.row_map is not None:
                    assert sorted(tensor.row_map) == list(range(tensor.rows))
            list(model.metadata.get("tokenizer.ggml.tokens", []))
            if not model.vocabulary_only:
                inv_freq(model.config, model.config.context)
                summarize(model)
        return True
    except HerderError as error:
        assert "\n" not in str(error)
        str(error).encode()
        return False


def touch(tensor: TensorSource) -> None:
    """Reads the first and the last byte that the tensor says are its own."""
    span = tensor.bytes
    if tensor.turned:
        span = ((tensor.cols - 1) * tensor.turned + tensor.rows) * tensor.format.block_bytes
    assert tensor.make is None
    for at in (0, span - 1):
        ctypes.string_at(tensor.address + at, 1)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """One layer, many kinds of metadata, a header of about 9 kB, mostly vocabulary; and the header's length."""
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    extra = {"key.bool": True, "key.float": 0.5, "key.ints": [1, -2], "key.strings": ["a", "bc"], "key.big": 2**30}
    write_tiny_gguf(path, layers=1, dim=32, heads=2, kv_heads=1, ffn_dim=32, formats="Q4_0", metadata=extra)
    return path.read_bytes(), gguf.GGUFReader(path).data_offset


@pytest.fixture(scope="module")
def small_safetensors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    directory = tmp_path_factory.mktemp("fuzz") / "m"
    write_tiny_hf(directory, layers=1, dim=16, heads=2, kv_heads=1, ffn_dim=16, dtype="BF16")
    return directory, (directory / "model.safetensors").read_bytes()


def mutations(raw: bytes, header: int, seed: int, count: int) -> Iterator[bytes]:
    """Flipped bits, changed bytes, lying numbers, cuts, doubled and dropped pieces; mostly in the header."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            at = rng.randrange(min(header, len(changed) - 8) if rng.random() < 0.9 else len(changed) - 8)
            match rng.randrange(7):
                case 0:
                    changed[at] ^= 1 << rng.randrange(8)
                case 1:
                    changed[at] = rng.randrange(256)
                case 2:
                    changed[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
                case 3:
                    changed[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
                case 4:
                    del changed[at + rng.randrange(9) :]
                case 5:
                    length = rng.randrange(1, 64)
                    changed[at:at] = changed[at : at + length]
                case 6:
                    del changed[at : at + rng.randrange(1, 16)]
            if len(changed) < 16:
                break
        yield bytes(changed)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_gguf_cut_at_any_place(tmp_path: Path, small_gguf: tuple[bytes, int], step: int) -> None:
    path = tmp_path / "cut.gguf"
    raw, header = small_gguf
    path.write_bytes(raw)
    assert survive(path)
    for cut in (*range(0, header, step), *range(header, len(raw), 50 * step)):
        path.write_bytes(raw[:cut])
        assert not survive(path), f"cut at {cut} of {len(raw)}"


def test_a_mutated_gguf(tmp_path: Path, small_gguf: tuple[bytes, int]) -> None:
    path = tmp_path / "m.gguf"
    accepted = 0
    for changed in mutations(*small_gguf, seed=1, count=1500):
        path.write_bytes(changed)
        accepted += survive(path)
    assert 0 < accepted < 1200  # neither blind nor always saved by the first check


def test_a_mutated_safetensors_file(tmp_path: Path, small_safetensors: tuple[Path, bytes]) -> None:
    directory, raw = small_safetensors
    header = 8 + int.from_bytes(raw[:8], "little")
    accepted = 0
    for changed in mutations(raw, header, seed=2, count=500):
        (directory / "model.safetensors").write_bytes(changed)
        accepted += survive(directory)
    (directory / "model.safetensors").write_bytes(raw)
    assert survive(directory)
    assert accepted < 400


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_safetensors_file_cut_at_any_place(tmp_path: Path, small_safetensors: tuple[Path, bytes], step: int) -> None:
    _, raw = small_safetensors
    path = tmp_path / "cut.safetensors"
    header = 8 + int.from_bytes(raw[:8], "little")
    for cut in (*range(0, header + 40, step), *range(header, len(raw), 50 * step)):
        path.write_bytes(raw[:cut])
        with pytest.raises(HerderError):
            SafeTensors(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_config_with_any_value_anywhere(
    tmp_path: Path, small_safetensors: tuple[Path, bytes], data: st.DataObject
) -> None:
    """config.json, generation_config.json, tokenizer_config.json, chat_template.json: any JSON under any known key."""
    directory, _ = small_safetensors
    file = directory / data.draw(st.sampled_from(["config.json", "generation_config.json", "tokenizer_config.json"]))
    before = file.read_text()
    known = list(json.loads(before))
    changed = json.loads(before)
    for key in data.draw(
        st.lists(st.sampled_from([*known, "rope_scaling", "chat_template", "layer_types"]), max_size=3)
    ):
        changed[key] = data.draw(json_values)
    try:
        file.write_text(json.dumps(changed))
        survive(directory)
    finally:
        file.write_text(before)


@pytest.mark.slow
def test_a_mutated_gguf_for_longer(tmp_path: Path, small_gguf: tuple[bytes, int]) -> None:
    path = tmp_path / "m.gguf"
    seed = random.SystemRandom().randrange(2**32)
    for i, changed in enumerate(mutations(*small_gguf, seed, count=10_000)):
        path.write_bytes(changed)
        try:
            survive(path)
        except BaseException as error:
            raise AssertionError(f"mutation {i} of seed {seed}") from error


@pytest.mark.slow
def test_every_byte_of_a_gguf_header_changed(tmp_path: Path, small_gguf: tuple[bytes, int]) -> None:
    path = tmp_path / "m.gguf"
    raw, header = small_gguf
    for at in range(header):
        for value in (0x00, 0x7F, 0x80, 0xFF):
            path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
            survive(path)


@pytest.mark.slow
def test_a_mutated_safetensors_file_for_longer(tmp_path: Path, small_safetensors: tuple[Path, bytes]) -> None:
    directory, raw = small_safetensors
    seed = random.SystemRandom().randrange(2**32)
    for i, changed in enumerate(mutations(raw, 8 + int.from_bytes(raw[:8], "little"), seed, count=10_000)):
        (directory / "model.safetensors").write_bytes(changed)
        try:
            survive(directory)
        except BaseException as error:
            raise AssertionError(f"mutation {i} of seed {seed}") from error
    (directory / "model.safetensors").write_bytes(raw)
