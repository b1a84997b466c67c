"""Packed weights kept on disk: the same logits, and nothing used that does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from herder.core.batch import Batch, Chunk, Want
from herder.core.errors import StorageError
from herder.runtime import prepacked
from herder.runtime.native import load_model
from herder.runtime.packing import store
from herder.weights.source import open_model
from tests.tiny import write_tiny_gguf


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HERDER_HOME", str(tmp_path / "home"))
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    yield path


def logits(path: Path) -> tuple[bytes, int]:
    """(logits of a few tokens, bytes of weights that the core holds itself)."""
    with open_model(path) as files:
        executor = load_model(files, context=64, kv_pages=4, threads=2)
    batch = Batch((Chunk(seq=0, tokens=[1, 2, 3], start=0, pages=[0], outputs=3, want=Want.LOGITS, prompt=True),))
    (output,) = executor.result(executor.launch(batch))
    held = executor.memory().weights
    executor.close()
    assert output.logits is not None
    return output.logits.tobytes(), held


def kept(path: Path) -> Path:
    with open_model(path) as files:
        return store(files)[0]


def test_the_same_bits_without_a_copy(model: Path) -> None:
    expected, held = logits(model)
    path = kept(model)
    ((listed, size, source),) = prepacked.stored()
    assert (listed, size, source) == (path, path.stat().st_size, os.path.realpath(model))
    mapped, left = logits(model)
    assert mapped == expected
    assert left < held / 4  # norms
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def _touch(path: Path, model: Path) -> None:
    os.utime(model, ns=(1, 1))


def _cut(path: Path, model: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _scribble(path: Path, model: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def _empty(path: Path, model: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("change", [_touch, _cut, _scribble, _empty])
def test_what_does_not_fit_is_not_used(
    model: Path, change: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected, held = logits(model)
    path = kept(model)
    assert not caplog.messages
    change(path, model)
    assert logits(model) == (expected, held)
    assert [f"herder pack {model}" in message for message in caplog.messages] == [True], "and it is said"
    kept(model)  # written anew
    assert logits(model)[1] < held


def test_another_layout_is_not_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(model)
    with open_model(model) as files:
        found = prepacked.open_packed(files)
        assert found is not None
        found.file.close()
        assert prepacked.open_packed(files, float32=True) is None
        monkeypatch.setattr(prepacked, "_identity", lambda files, float32: {"layout": 0})
        assert prepacked.open_packed(files) is None


def test_a_disk_without_room_is_left_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "SPARE", 1 << 62)
    with pytest.raises(StorageError, match="needs"):
        kept(model)
    assert prepacked.stored() == []
