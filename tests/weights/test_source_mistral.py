"""Mistral's consolidated files as named tensors: whole, in parts, as pickles; experts one by one or stacked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from herder.core.config import Experts, LayerPlan, ModelConfig, Rope
from herder.core.errors import HerderError, ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights.source import open_model
from tests.oracle import ours
from tests.tiny import random_weights, tiny_config, write_tiny_hf
from tests.tiny_moe import interleave, mixtral
from tests.weights.meta_files import write_torch
from tests.weights.test_source_meta import JSON, contents, read_or_refused

Array = np.ndarray
_NAMES = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2", "mlp.router": "feed_forward.gate", "mlp.experts": "feed_forward.experts",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm", "lm_head": "output", "model.layers": "layers", ".gate_proj.": ".w1.", ".up_proj.": ".w3.",
    ".down_proj.": ".w2.",
}  # fmt: skip


def stored(config: ModelConfig, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Canonical names and row order -> Mistral's."""
    result = {}
    for name, values in weights.items():
        rows = values[0] if values.shape[0] == 1 else values
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        for canonical, short in _NAMES.items():
            name = name.replace(canonical, short)
        result[name] = rows if heads is None else interleave(rows, heads)
    return result


def stacked(config: ModelConfig, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The layout of Mixtral's first release: each layer's experts in three tensors, w2 transposed."""
    result = {
        name.replace("feed_forward", "block_sparse_moe"): v for name, v in tensors.items() if ".experts." not in name
    }
    assert config.experts is not None
    for layer in range(config.layers):
        for matrix in ("w1", "w2", "w3"):
            each = [
                tensors[f"layers.{layer}.feed_forward.experts.{e}.{matrix}.weight"] for e in range(config.experts.count)
            ]
            rows = [part.T if matrix == "w2" else part for part in each]
            result[f"layers.{layer}.block_sparse_moe.{matrix}"] = np.ascontiguousarray(np.concatenate(rows))
    return result


def params(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dim": config.dim, "n_layers": config.layers, "head_dim": config.head_dim, "hidden_dim": config.ffn_dim,
        "n_heads": config.heads, "n_kv_heads": config.kv_heads, "norm_eps": config.norm_eps, "vocab_size": config.vocab,
        "rope_theta": config.rope.theta,
    }  # fmt: skip
    if config.plan[0].window is not None:
        values["sliding_window"] = config.plan[0].window
    if config.experts is not None:
        values["moe"] = {"num_experts": config.experts.count, "num_experts_per_tok": config.experts.active}
    return values


def write(directory: Path, config: ModelConfig, tensors: Mapping[str, Array], parts: int = 1) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    for number in range(1, parts + 1):
        file = "consolidated.safetensors" if parts == 1 else f"consolidated-{number:05d}-of-{parts:05d}.safetensors"
        some = {name: np.ascontiguousarray(tensors[name]) for name in names[number - 1 :: parts]}
        save_file(some, directory / file)
    (directory / "params.json").write_text(json.dumps(params(config)))
    return directory


SHAPES: dict[str, dict[str, Any]] = {
    "window": {"window": 16, "head_dim": 32, "tied": False},
    "full": {"rope": Rope(1e6), "tied": False},
    "tied": {"tied": True},
    "experts": mixtral(window=None),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("case", SHAPES)
def test_what_was_written_is_found(tmp_path: Path, case: str, parts: int) -> None:
    config = tiny_config(**SHAPES[case])
    weights = random_weights(config, "F32", 2)[0]
    directory = write(tmp_path / "model", config, stored(config, weights), parts)
    with open_model(directory) as model:
        assert {name: data for name, (_, _, _, data) in contents(model).items()} == {
            name: values.tobytes() for name, values in weights.items()
        }
        assert (model.kind, len(model.paths), model.name) == ("mistral", parts, "model")
        assert (model.bos, model.eos, model.stop_token_ids) == (1, 2, frozenset({2}))
        assert all(tensor.make is None for tensor in model.tensors)
        found = model.config
        assert (found.rope, found.tied, found.experts) == (config.rope, config.tied, config.experts)
        assert found.plan == config.plan and found.head_dim == config.head_dim


def test_the_same_model_as_hugging_faces_file(tmp_path: Path) -> None:
    """Bit for bit after the gather, and so are the logits."""
    hf = write_tiny_hf(tmp_path / "hf", architecture="mistral", window=24, tied=False, seed=5)
    directory = write(tmp_path / "mistral", hf.config, stored(hf.config, hf.weights))
    ids = [int(i) for i in np.random.default_rng(0).integers(0, hf.config.vocab, 40)]
    found, logits = [], []
    for path in (hf.path, directory):
        with open_model(path) as model:
            found.append(contents(model))
        with ours.executor(path, "float32", context=64) as native:
            logits.append(ours.logits(native, ids).tobytes())
    assert found[0] == found[1] and logits[0] == logits[1]


def test_first_releases_were_pickles(tmp_path: Path) -> None:
    """Experts stacked, tensors spread over files that are not ranks."""
    config = tiny_config(**mixtral())
    weights = random_weights(config, "F32", 3)[0]
    tensors = stacked(config, stored(config, weights))
    (tmp_path / "params.json").write_text(json.dumps(params(config)))
    names = sorted(tensors)
    for rank in range(2):
        write_torch(tmp_path / f"consolidated.{rank:02d}.pt", {name: ("F32", tensors[name]) for name in names[rank::2]})
    with open_model(tmp_path) as model:
        assert {name: data for name, (_, _, _, data) in contents(model).items()} == {
            name: values.tobytes() for name, values in weights.items()
        }
        assert model.config.experts == Experts(4, 2, 96, "softmax")
        assert model.config.plan == (LayerPlan(experts=True),) * 2
        assert any(tensor.turned for tensor in model.tensors)
    write_torch(tmp_path / "consolidated.01.pt", {name: ("F32", tensors[name]) for name in [names[0], *names[1::2]]})
    refused(tmp_path, ModelFileError, "is also in another file of the model")


def refused(directory: Path, kind: type[HerderError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_model(directory)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(
    st.sampled_from([*params(tiny_config()), "moe", "sliding_window", "max_seq_len", "use_biases", "lora"]),
    JSON | st.sampled_from([1, 2, 4, 64, 1 << 24, 1e6]), max_size=3,
))  # fmt: skip
def test_any_params_are_read_or_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(tied=False)
    if not (tmp_path / "m").exists():
        write(tmp_path / "m", config, stored(config, random_weights(config, "F32", 2)[0]))
    (tmp_path / "m" / "params.json").write_text(json.dumps({**params(config), **changes}))
    read_or_refused(tmp_path / "m")


def test_refusals(tmp_path: Path) -> None:
    config = tiny_config(tied=False)
    tensors = stored(config, random_weights(config, "F32", 2)[0])
    directory = write(tmp_path / "m", config, tensors, parts=3)
    (directory / "consolidated-00002-of-00003.safetensors").unlink()
    refused(directory, ModelNotFound, r"consolidated-00002-of-00003\.safetensors is missing")
    write(directory, config, tensors)
    refused(directory, ModelFileError, r"has both consolidated\.safetensors and consolidated-00001")
    for path in directory.glob("consolidated-*"):
        path.unlink()
    for changes, kind, message in (
        (
            {"layers.0.attention.wq.lora_A.weight": tensors["norm.weight"]},
            UnsupportedModel,
            "lora_A.* is not known here",
        ),
        ({"layers.1.ffn_norm.weight": None}, ModelFileError, r"layers\.1\.ffn_norm\.weight' is missing"),
        ({"norm.weight": np.ones(65, np.float32)}, ModelFileError, r"norm\.weight has shape 1 x 65, but params\.json"),
        ({"norm.weight": np.ones(64, np.int8)}, UnsupportedModel, "is stored as I8"),
    ):
        changed = {name: values for name, values in {**tensors, **changes}.items() if values is not None}
        write(directory, config, changed)
        refused(directory, kind, message)
