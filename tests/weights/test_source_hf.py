"""Hugging Face directories as configuration and named tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from herder.core.config import Rope
from herder.core.errors import HerderError, ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights.source import open_model
from tests.tiny import CHATML, write_tiny_hf
from tests.weights.test_source_gguf import assert_matches

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tied": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "F16": {"dtype": "F16"},
    "BF16": {"dtype": "BF16"},
    "shards": {"shards": 3, "dtype": "BF16"},
    "mistral": {"architecture": "mistral", "window": 16, "tied": False},
    "llama3": {"rope": Rope(5e5, "llama3", 8.0, 64)},
    "wide heads": {"head_dim": 32, "kv_heads": 1},
}


@pytest.mark.parametrize("case", SHAPES)
def test_what_was_written_is_found(tmp_path: Path, case: str) -> None:
    tiny = write_tiny_hf(tmp_path / "model", **SHAPES[case])
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)
        assert (model.kind, model.vocabulary_only, model.path) == ("safetensors", False, tiny.path)
        assert len(model.paths) == SHAPES[case].get("shards", 1)
        assert model.file_bytes == sum(path.stat().st_size for path in model.paths)
        assert all(tensor.row_map is None for tensor in model.tensors)


def test_the_files_are_those_the_package_reads(tmp_path: Path) -> None:
    tiny = write_tiny_hf(tmp_path / "model")
    with open_model(tiny.path) as model, safe_open(model.paths[0], "np") as theirs:
        assert {t.name for t in model.tensors} == set(theirs.keys())
        for tensor in model.tensors:
            assert bytes(tensor.view()) == theirs.get_tensor(tensor.name).tobytes()


@pytest.mark.oracle
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_a_model_that_transformers_saved(tmp_path: Path, shard: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    theirs = LlamaForCausalLM(config).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    with open_model(tmp_path) as model:
        assert (len(model.paths) > 1) == (shard == "20KB")
        for tensor in model.load():
            expected = theirs.state_dict()[tensor.name]
            assert bytes(tensor.view()) == expected.view(torch.int16).numpy().tobytes()
        assert len(model.tensors) == len(theirs.state_dict())


# The small files


def test_stop_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m", generation_config={"eos_token_id": [7, 9, 2], "bos_token_id": 3}).path
    with open_model(directory) as model:
        assert (model.bos, model.eos, model.stop_token_ids) == (3, 7, frozenset({2, 7, 9}))
    (directory / "generation_config.json").unlink()
    with open_model(directory) as model:
        assert (model.bos, model.eos, model.stop_token_ids) == (1, 2, frozenset({2}))


def test_minus_one_is_no_token_and_an_id_outside_is_named(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m", generation_config={"eos_token_id": [-1], "bos_token_id": -1}).path
    with open_model(directory) as model:
        assert (model.bos, model.eos, model.stop_token_ids) == (None, None, frozenset())
    write(directory / "generation_config.json", {"eos_token_id": [2, 288]})
    with pytest.raises(ModelFileError, match=r"eos_token_id is \[2, 288\], outside the vocabulary of 288"):
        open_model(directory)


def write(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_chat_templates_in_the_order_of_transformers(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m").path

    def templates() -> dict[str, str]:
        with open_model(directory) as model:
            assert model.chat_template == model.chat_templates.get("default")
            return dict(model.chat_templates)

    assert templates() == {"default": CHATML}
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write(directory / "tokenizer_config.json", {"chat_template": named})
    assert templates() == {"default": "a", "tool_use": "b"}
    write(directory / "chat_template.json", {"chat_template": "c"})
    assert templates() == {"default": "c", "tool_use": "b"}
    write(directory / "chat_template.jinja", "d")
    (directory / "additional_chat_templates").mkdir()
    write(directory / "additional_chat_templates" / "rag.jinja", "e")
    assert templates() == {"default": "d", "tool_use": "b", "rag": "e"}
    for name in ("tokenizer_config.json", "chat_template.json", "chat_template.jinja"):
        (directory / name).unlink()
    assert templates() == {"rag": "e"}
    write(directory / "tokenizer_config.json", {"chat_template": {"default": 1}})
    with pytest.raises(ModelFileError, match=r"tokenizer_config\.json: chat_template is"):
        open_model(directory)


@pytest.mark.parametrize(("card", "licence"), [
    ("---\nlicense: apache-2.0\ntags: [a]\n---\nlicense: no", "apache-2.0"),
    ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
    ('---\nlicense: "mit"  # free\n---\n', "mit"),
    ("# Card\nlicense: mit\n", ""),
    ("---\ntags: [a]\n---\n", ""),
])  # fmt: skip
def test_the_licence_is_the_cards(tmp_path: Path, card: str, licence: str) -> None:
    directory = write_tiny_hf(tmp_path / "m").path
    write(directory / "README.md", card)
    with open_model(directory) as model:
        assert model.licence == model.config.licence == licence
    (directory / "README.md").unlink()
    assert open_model(directory).licence == ""


def test_a_model_in_the_hubs_cache_is_named_by_its_repository(tmp_path: Path) -> None:
    """Its files are links to blobs beside the snapshots."""
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123abcd"
    tiny = write_tiny_hf(snapshot)
    blob = tmp_path / "models--org--tiny" / "blobs" / "f00"
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00")
    with open_model(snapshot) as model:
        assert model.name == model.config.name == "org/tiny"
        assert len(model.tensors) == len(tiny.stored)


# Refusals


def refused(directory: Path, kind: type[HerderError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_model(directory)
    assert "\n" not in str(caught.value)


def test_no_weights_and_pickles_are_named(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m").path
    (directory / "model.safetensors").unlink()
    refused(directory, ModelNotFound, r"has no model\.safetensors and no model\.safetensors\.index\.json")
    (directory / "pytorch_model.bin").touch()
    refused(directory, UnsupportedModel, r"weights in pytorch_model\.bin, a pickle")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m", shards=3).path
    (directory / "model-00002-of-00003.safetensors").unlink()
    refused(directory, ModelNotFound, r"model-00002-of-00003\.safetensors is missing \(the model has 3 files\)")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "x.bin", 3, None]
)
def test_the_index_cannot_point_elsewhere(tmp_path: Path, name: Any) -> None:
    directory = write_tiny_hf(tmp_path / "m", shards=2).path
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    write(path, index)
    refused(directory, ModelFileError, "not the name of a safetensors file")


def test_an_index_that_disagrees_with_its_files_is_named(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m", shards=2).path
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    original = dict(index["weight_map"])
    swapped = {
        name: file.replace("1-of", "9-of").replace("2-of", "1-of").replace("9-of", "2-of")
        for name, file in original.items()
    }
    write(path, {"weight_map": swapped})
    refused(directory, ModelFileError, "does not hold tensor '.*', as the index says")
    write(path, {"weight_map": {**original, "model.extra": "model-00001-of-00002.safetensors"}})
    refused(directory, ModelFileError, "does not hold tensor 'model.extra'")
    write(path, {"weight_map": []})
    refused(directory, ModelFileError, "weight_map is")


def changed(directory: Path, change: Any) -> Path:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return directory


def test_tensors_that_contradict_the_configuration_are_named(tmp_path: Path) -> None:
    def fresh() -> Path:
        return write_tiny_hf(tmp_path / "m").path

    norm, query = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
    refused(changed(fresh(), lambda t: t.pop(norm)), ModelFileError, r"tensor model\.norm\.weight is missing")
    refused(changed(fresh(), lambda t: t.update({norm: t[norm][None]})), ModelFileError, "has shape 1 x 64, but")
    refused(
        changed(fresh(), lambda t: t.update({query: t[query][:32]})), ModelFileError, "32 x 64, .* asks for 64 x 64"
    )
    bias = {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}
    refused(
        changed(fresh(), lambda t: t.update(bias)),
        ModelFileError,
        "q_proj.bias does not belong to .* attention_bias False",
    )
    third = {"model.layers.2.mlp.up_proj.weight": np.ones((96, 64), np.float32)}
    refused(
        changed(fresh(), lambda t: t.update(third)),
        ModelFileError,
        "layers.2.mlp.up_proj.weight does not belong to a model of 2",
    )
    unknown = {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
    refused(changed(fresh(), lambda t: t.update(unknown)), UnsupportedModel, r"q_norm\.weight' is not known here")
    foreign = {"blk.0.attn_q.weight": np.ones((64, 64), np.float32)}
    refused(
        changed(fresh(), lambda t: t.update(foreign)), UnsupportedModel, r"'blk\.0\.attn_q\.weight' is not known here"
    )
    integers = {norm: np.ones(64, np.int32)}
    refused(changed(fresh(), lambda t: t.update(integers)), UnsupportedModel, "model.norm.weight is stored as I32")


def test_old_rope_buffers_carry_nothing(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    directory = changed(write_tiny_hf(tmp_path / "m").path, lambda t: t.update(buffer))
    with open_model(directory) as model:
        assert not any("inv_freq" in tensor.name for tensor in model.tensors)


def test_a_tied_head_that_is_stored_too(tmp_path: Path) -> None:
    """Dropped when it repeats the embedding; a contradiction when it differs."""
    embed = "model.embed_tokens.weight"
    directory = changed(write_tiny_hf(tmp_path / "m").path, lambda t: t.update({"lm_head.weight": t[embed]}))
    with open_model(directory) as model:
        assert model.config.tied and "lm_head.weight" not in {t.name for t in model.tensors}
    changed(directory, lambda t: t.update({"lm_head.weight": t[embed] + 1}))
    refused(directory, ModelFileError, r"tie_word_embeddings is true, but lm_head\.weight differs")


def test_an_untied_head_that_is_missing(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m", extra_config={"tie_word_embeddings": False}).path
    refused(directory, ModelFileError, r"tensor lm_head\.weight is missing")


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m", shards=2).path
    names = sorted(directory.glob("*.safetensors"))
    first, second = load_file(names[0]), load_file(names[1])
    save_file({**second, **{next(iter(first)): first[next(iter(first))]}}, names[1])
    refused(directory, ModelFileError, "is also in .*model-00001-of-00002")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"{" * 10**5, b'{"a":1,"a":1}', b"NaN"])
def test_a_config_that_is_no_json_object(tmp_path: Path, raw: bytes) -> None:
    directory = write_tiny_hf(tmp_path / "m").path
    (directory / "config.json").write_bytes(raw)
    refused(directory, ModelFileError, "config.json")


def test_files_are_closed_when_opening_fails(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "m", shards=3).path
    write(directory / "generation_config.json", {"eos_token_id": 999})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        refused(directory, ModelFileError, "999")
    assert len(os.listdir("/proc/self/fd")) == before
