"""Models through other formats and back: the same bytes, the same configuration, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from herder.convert.convert import Kind, Report, convert
from herder.core.config import ModelConfig, Rope
from herder.core.errors import HerderError, StorageError, UnsupportedModel, UsageError
from herder.formats import table
from herder.formats.table import BY_NAME
from herder.weights.source import open_model
from tests.text.vocabularies import mistral_file
from tests.tiny import write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral
from tests.weights.quantized.checkpoint import write
from tests.weights.quantized.schemes import SCHEMES, plain

LLAMA3 = Rope(5e5, "llama3", 8.0, 8192)
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {}, "BF16": {"dtype": "BF16", "tied": False}, "F16": {"dtype": "F16", "head_dim": 32, "kv_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True, "tied": False, "dtype": "BF16"},
    "mistral": {"architecture": "mistral", "window": 16, "tied": False}, "llama3": {"rope": LLAMA3},
    "llama3 of another context": {"rope": replace(LLAMA3, original_context=64)},
    "linear": {"rope": Rope(1e4, "linear", 4.0)}, "yarn": {"rope": Rope(1e4, "yarn", 4.0, 64)},
    "mixtral": {**mixtral(), "dtype": "BF16"},
    "llama4": {**llama4(chunk=8192, floor=8192, context=16384), "dtype": "BF16"},
}  # fmt: skip


def write_again(source: Path, target: Path, **options: Any) -> Report:
    with open_model(source) as files:
        return convert(files, target, **options)


def contents(path: Path) -> tuple[ModelConfig, dict[str, tuple[str, bytes]]]:
    """The configuration without its name, and per tensor the format and the bytes, rows in canonical order."""
    with open_model(path) as files:
        tensors = {}
        for tensor in files.load():
            rows = np.frombuffer(tensor.view(), np.uint8).reshape(tensor.rows, -1)
            if tensor.row_map is not None:
                rows = rows[np.frombuffer(tensor.row_map, np.uint32)]
            tensors[tensor.name] = tensor.format.name, rows.tobytes()
        return replace(files.config, name=""), tensors


@pytest.mark.parametrize("case", SHAPES)
def test_to_gguf_and_back(tmp_path: Path, case: str) -> None:
    source = write_tiny_hf(tmp_path / "source", **SHAPES[case]).path
    report = write_again(source, tmp_path / "model.gguf")
    assert (report.kind, report.rounded, report.bytes) == ("gguf", {}, (tmp_path / "model.gguf").stat().st_size)
    write_again(tmp_path / "model.gguf", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    with open_model(source) as a, open_model(tmp_path / "back") as b:
        assert (a.bos, a.eos, a.stop_token_ids, a.chat_template) == (b.bos, b.eos, b.stop_token_ids, b.chat_template)
        assert a.licence == b.licence
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_the_gguf_package_reads_ours(tmp_path: Path) -> None:
    """Norms F32, matrices as they were, q and k rows interleaved as llama.cpp's converter permutes them."""
    tiny = write_tiny_hf(tmp_path / "source", dtype="BF16")
    write_again(tiny.path, tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert found["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    config = tiny.config
    for name, heads in (("q", config.heads), ("k", config.kv_heads)):
        wanted = tiny.weights[f"model.layers.1.self_attn.{name}_proj.weight"]
        wanted = wanted.reshape(heads, 2, config.head_dim // 2, config.dim).swapaxes(1, 2).reshape(wanted.shape)
        tensor = found[f"blk.1.attn_{name}.weight"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.BF16
        np.testing.assert_array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), wanted)


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """A tiny Hugging Face model with SentencePiece's vocabulary, as Llama 2 has it, written in Meta's format."""
    source = write_tiny_hf(
        tmp_path / "source", dtype="BF16", tied=False, vocab=32000, dim=32, heads=2, rope=LLAMA3
    ).path
    (source / "tokenizer.json").unlink()
    shutil.copy(mistral_file("tokenizer.model.v1"), source / "tokenizer.model")
    write_again(source, tmp_path / "meta", kind="meta")
    return tmp_path / "meta"


def test_to_meta_and_back(tmp_path: Path, meta: Path) -> None:
    assert sorted(path.name for path in meta.iterdir()) == ["consolidated.00.pth", "params.json", "tokenizer.model"]
    wanted, tensors = contents(tmp_path / "source")
    found, same = contents(meta)
    assert (replace(found, context=wanted.context), same) == (replace(wanted, licence=""), tensors)
    write_again(meta, tmp_path / "hf", kind="hf")
    write_again(tmp_path / "hf", tmp_path / "again", kind="meta")
    for name in ("consolidated.00.pth", "params.json", "tokenizer.model"):
        assert (tmp_path / "again" / name).read_bytes() == (meta / name).read_bytes()
    write_again(meta, tmp_path / "model.gguf")
    assert contents(tmp_path / "model.gguf")[1]["lm_head.weight"] == tensors["lm_head.weight"]


def test_quantized_weights_stay_blocks_in_gguf(tmp_path: Path) -> None:
    """A GPTQ checkpoint becomes Q4_0 without rounding; the same model expanded is another conversion."""
    source = write_tiny_hf(tmp_path / "source").path
    stored: dict[str, Any] = {}
    for name, values in load_file(source / "model.safetensors").items():
        new = SCHEMES["gptq"].quantize(name.removesuffix(".weight"), values)[0] if "_proj." in name else None
        stored |= {name: plain(values)} if new is None else new
    write(source / "model.safetensors", stored)
    settings = json.loads((source / "config.json").read_text()) | {"quantization_config": SCHEMES["gptq"].config}
    (source / "config.json").write_text(json.dumps(settings))
    write_again(source, tmp_path / "model.gguf")
    before, after = contents(source)[1], contents(tmp_path / "model.gguf")[1]
    matrices = {name: value for name, value in before.items() if "norm" not in name}
    assert {name: after[name] for name in matrices} == matrices
    assert {fmt for name, (fmt, _) in after.items() if "_proj." in name} == {"Q4_0"}
    with pytest.raises(UnsupportedModel, match=r"in Q4_0, which only GGUF holds: give --type bf16"):
        write_again(tmp_path / "model.gguf", tmp_path / "hf")
    report = write_again(tmp_path / "model.gguf", tmp_path / "hf", fmt=table.F32)
    assert report.rounded == {}
    report = write_again(source, tmp_path / "expanded", fmt=table.BF16)
    assert report.rounded
    assert "quantization_config" not in json.loads((tmp_path / "expanded/config.json").read_text())
    assert {fmt for fmt, _ in contents(tmp_path / "expanded")[1].values()} == {"BF16"}


@pytest.mark.parametrize("quant", ["Q4_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_a_gguf_is_expanded_as_its_numbers_say(tmp_path: Path, quant: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "model.gguf", dim=256, formats=quant, layers=1, ffn_dim=256)
    report = write_again(tiny.path, tmp_path / "hf", fmt=table.F32)
    assert report.rounded == {}
    for name, values in load_file(tmp_path / "hf/model.safetensors").items():
        np.testing.assert_array_equal(values.reshape(tiny.weights[name].shape), tiny.weights[name])


def test_a_cast_that_rounds_is_reported(tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "source").path
    report = write_again(source, tmp_path / "half", fmt=table.BF16)
    assert len(report.rounded) == len(contents(source)[1])
    again = write_again(tmp_path / "half", tmp_path / "wide", fmt=table.F32)
    assert again.rounded == {}
    assert write_again(tmp_path / "wide", tmp_path / "narrow", fmt=table.BF16).rounded == {}
    assert contents(tmp_path / "narrow")[1] == contents(tmp_path / "half")[1]


def test_shards(tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "source").path
    write_again(source, tmp_path / "shards", kind="hf", shard_size=100_000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files[0] == "model-00001-of-00004.safetensors"
    assert len(files) == 4
    assert contents(tmp_path / "shards") == contents(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        assert (tmp_path / "shards" / name).read_bytes() == (source / name).read_bytes()


# Refusals, and what is left behind: nothing


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "source").path
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").touch()
    with pytest.raises(UsageError, match="target exists: give --force"):
        write_again(source, target)
    with pytest.raises(UsageError, match="holds no model, which --force does not replace"):
        write_again(source, target, force=True)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    (target / "config.json").touch()
    write_again(source, target, force=True)
    assert contents(target) == contents(source)
    assert not (target / "thesis.txt").exists()
    (tmp_path / "x.gguf").touch()
    write_again(source, tmp_path / "x.gguf", force=True)
    assert contents(tmp_path / "x.gguf")[1] == contents(source)[1]


@pytest.mark.parametrize(("target", "kind"), [("x.gguf", None), ("new", "hf")])
def test_an_interruption_leaves_nothing(tmp_path: Path, target: str, kind: Kind | None) -> None:
    source = write_tiny_hf(tmp_path / "source").path

    def interrupt(what: str, done: int, total: int | None) -> None:
        assert (what, total is not None and 0 < done <= total) == (f"Writing {target}", True)
        if done > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_again(source, tmp_path / target, kind=kind, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from herder.core import machine

    monkeypatch.setattr(machine, "free_disk", lambda _: 1000)
    source = write_tiny_hf(tmp_path / "source").path
    with pytest.raises(StorageError, match=r"x\.gguf needs .* free in"):
        write_again(source, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


REFUSED: list[tuple[str, Mapping[str, Any], Mapping[str, Any], str]] = [
    ("quantize", {}, {"fmt": BY_NAME["Q4_0"]}, "--type q4_0 would quantize the weights"),
    ("llama4's chunk", llama4(chunk=64, floor=8192), {}, "has plan that GGUF cannot say"),
    ("meta's experts", mixtral(), {"kind": "meta"}, "has experts which cannot be written in Meta's format"),
    ("meta's biases", {"attention_bias": True}, {"kind": "meta"}, "has biases which cannot be written"),
    ("meta's heads", {"head_dim": 32}, {"kind": "meta"}, "has heads of 32, not 16, which cannot be written"),
    ("meta's scaling", {"rope": Rope(1e4, "linear", 2.0)}, {"kind": "meta"}, "RoPE scaling linear that params.json"),
    ("meta's vocabulary", {}, {"kind": "meta"}, "no file for this vocabulary"),
    ("no shard", {}, {"kind": "hf", "shard_size": 0}, "shard size is 0"),
]


@pytest.mark.parametrize(("shape", "options", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_said_is_refused(
    tmp_path: Path, shape: Mapping[str, Any], options: Mapping[str, Any], message: str
) -> None:
    source = write_tiny_hf(tmp_path / "source", **shape).path
    target = tmp_path / ("target" if "kind" in options else "target.gguf")
    with pytest.raises(HerderError, match=message) as caught:
        write_again(source, target, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_targets_that_make_no_sense(tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "source").path
    write_again(source, tmp_path / "x.gguf")
    for origin, target, kind, message in (
        (tmp_path / "x.gguf", "y.gguf", None, "is in this format already"), (source, "x", "gguf", "ends in .gguf"),
        (source, "x.gguf", "hf", "a directory"), (source, "source", None, "holds the model that is to be converted"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            write_again(origin, tmp_path / target, kind=kind, force=True)
