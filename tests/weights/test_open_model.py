"""What a path or directory is taken for, and what is said of one that holds no whole model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from herder.core.errors import HerderError, ModelNotFound
from herder.weights.source import open_model
from tests.tiny import TinyModel, write_tiny_gguf, write_tiny_hf
from tests.weights.meta_files import dense_state, params, split, write_meta

SHAPE: dict[str, Any] = {"layers": 1, "tied": False}


@pytest.fixture
def published(tmp_path: Path) -> TinyModel:
    return write_tiny_hf(tmp_path / "published", **SHAPE)


def meta(directory: Path, tiny: TinyModel) -> Path:
    """The same weights in Meta's format, on two ranks."""
    return write_meta(directory, split(dense_state(tiny.config, tiny.weights), 2), params(tiny.config))


def mistral(directory: Path, tiny: TinyModel) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: np.ascontiguousarray(values) for name, values in dense_state(tiny.config, tiny.weights).items()}
    save_file(state, directory / "consolidated.safetensors")
    c = tiny.config
    written = {"dim": c.dim, "n_layers": c.layers, "head_dim": c.head_dim, "hidden_dim": c.ffn_dim, "n_heads": c.heads}
    written |= {"n_kv_heads": c.kv_heads, "norm_eps": c.norm_eps, "vocab_size": c.vocab}
    (directory / "params.json").write_text(json.dumps(written))
    return directory


def kind(path: Path) -> str:
    with open_model(path) as model:
        return model.kind


def test_each_kind_of_directory(tmp_path: Path, published: TinyModel) -> None:
    (tmp_path / "gguf.d").mkdir()
    write_tiny_gguf(tmp_path / "gguf.d" / "m.gguf")
    assert kind(published.path) == "safetensors"
    assert kind(tmp_path / "gguf.d") == kind(tmp_path / "gguf.d" / "m.gguf") == "gguf"
    assert kind(meta(tmp_path / "meta", published)) == "meta"
    assert kind(mistral(tmp_path / "mistral", published)) == "mistral"


def test_published_safetensors_come_before_the_same_weights_in_another_form(published: TinyModel) -> None:
    """Hugging Face's repositories of Mistral have both side by side, those of Llama in `original`."""
    mistral(published.path, published)
    meta(published.path / "original", published)
    assert kind(published.path) == "safetensors"
    assert kind(published.path / "original") == "meta"


def test_a_configuration_does_not_hide_weights_of_another_form(tmp_path: Path, published: TinyModel) -> None:
    for directory in (mistral(tmp_path / "mistral", published), tmp_path / "gguf"):
        directory.mkdir(exist_ok=True)
        shutil.copy(published.path / "config.json", directory)
    write_tiny_gguf(tmp_path / "gguf" / "m.gguf")
    assert kind(tmp_path / "mistral") == "mistral" and kind(tmp_path / "gguf") == "gguf"


def refused(path: Path, message: str) -> None:
    with pytest.raises(HerderError, match=message) as caught:
        open_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_in_a_folder_of_their_own_are_named(tmp_path: Path, published: TinyModel) -> None:
    (published.path / "model.safetensors").unlink()
    refused(published.path, "has no model.safetensors")
    meta(published.path / "original", published)
    refused(published.path, f"in a folder of their own: give {published.path / 'original'}")


def test_what_is_missing_is_named(tmp_path: Path, published: TinyModel) -> None:
    (published.path / "config.json").unlink()
    refused(published.path, "holds model.safetensors without config.json")
    directory = meta(tmp_path / "meta", published)
    (directory / "consolidated.00.pth").rename(directory / "consolidated.02.pth")
    refused(directory, "consolidated.00.pth is missing")
    (directory / "params.json").unlink()
    refused(directory, "params.json is missing")
    refused(directory / "consolidated.01.pth", "give the directory that also holds params.json")
    refused(directory / "pytorch_model.bin", "give the directory that also holds config.json")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "params.json").write_text("{}")
    refused(bare, "has params.json and no consolidated.00.pth")
    split_gguf = tmp_path / "split"
    split_gguf.mkdir()
    (split_gguf / "m-00002-of-00002.gguf").write_bytes(b"")
    refused(split_gguf, "lacks the first part of m-00002-of-00002.gguf")


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    refused(tmp_path, r"cannot be read \(Permission denied\): check its permissions")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds neither config\.json nor a \.gguf file"):
        open_model(tmp_path)
