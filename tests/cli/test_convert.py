"""herder convert on the command line: what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from herder.weights.source import open_model
from tests.cli.conftest import Run
from tests.tiny import write_tiny_hf


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_hf(tmp_path / "source").path


def test_the_path_is_printed_and_the_rest_is_said(run: Run, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    result = run("convert", str(source), str(target))
    assert (result.code, result.out) == (0, f"{target}\n")
    assert "tensors" in result.err
    with open_model(target) as files:
        assert files.kind == "gguf"


def test_rounding_is_said(run: Run, source: Path, tmp_path: Path) -> None:
    result = run("convert", str(source), str(tmp_path / "half"), "--type", "bf16", "--shard-size", "100KB")
    assert result.code == 0
    assert "tensors were rounded: bf16 cannot hold them exactly" in result.err
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    result = run("convert", str(tmp_path / "half"), str(tmp_path / "wide"), "--type", "f32", "--json")
    document = json.loads(result.out)
    assert (document["format"], document["rounded"], document["tensors"]) == ("hf", {}, 20)
    assert "rounded" not in result.err


@pytest.mark.parametrize(("words", "message"), [
    (["out.gguf", "--to", "hf"], "is to hold hf: give a directory"),
    (["out", "--type", "q4_0"], "--type is 'q4_0': must be one of f32, f16, bf16"),
    (["out", "--shard-size", "5"], ""),
    (["out", "--shard-size", "5XB"], "must be a size such as 5GB"),
    (["source"], "holds the model that is to be converted"),
])  # fmt: skip
def test_usage(run: Run, source: Path, tmp_path: Path, words: list[str], message: str) -> None:
    result = run("convert", str(source), str(tmp_path / words[0]), *words[1:])
    assert result.code == (2 if message else 0)
    assert message in result.err


def test_what_is_there_is_replaced_when_asked_to(run: Run, source: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("precious")
    result = run("convert", str(source), str(tmp_path / "m.gguf"))
    assert (result.code, (tmp_path / "m.gguf").read_text()) == (2, "precious")
    assert "give --force to replace it" in result.err
    assert run("convert", str(source), str(tmp_path / "m.gguf"), "--force").code == 0
