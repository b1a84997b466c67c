"""The fingerprint of a served model: the same until something changes that decides its answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from herder.serve.config import ModelSpec
from herder.serve.fingerprint import fingerprint


def test_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF one")
    spec = ModelSpec("a", source=str(file))
    first = fingerprint(spec)
    assert first == fingerprint(replace(spec, name="b", aliases=("c",), idle=3.0)) and first.startswith("fp_")
    assert fingerprint(replace(spec, runtime="torch")) != first
    assert fingerprint(spec, prompts_apart=True) != first
    file.write_bytes(b"GGUF other")
    assert fingerprint(spec) != first


def test_files_of_a_directory_and_a_template(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    template = tmp_path / "template.jinja"
    template.write_text("a")
    spec = ModelSpec("a", source=str(directory), template=str(template))
    first = fingerprint(spec)
    (directory / "model.safetensors").write_bytes(b"x")
    second = fingerprint(spec)
    template.write_text("longer")
    assert len({first, second, fingerprint(spec)}) == 3


def test_files_that_are_gone(tmp_path: Path) -> None:
    assert fingerprint(ModelSpec("a", source=str(tmp_path / "nothing.gguf"))).startswith("fp_")
