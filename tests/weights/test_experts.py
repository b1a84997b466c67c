"""Models with experts, from Hugging Face directories and GGUF files: the tensors that were written are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.formats import reference
from herder.weights.names import Role
from herder.weights.source import open_model
from tests.tiny import write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral
from tests.weights.test_source_gguf import assert_matches, canonical_rows

HF: dict[str, dict[str, Any]] = {
    "mixtral": mixtral(),
    "mixtral BF16, window, shards": mixtral(window=16, dtype="BF16", shards=3),
    "mixtral of two experts": mixtral(experts=2, active=1, layers=1),
    "llama4": llama4(),
    "llama4 BF16, every layer, two active": llama4(step=1, active=2, dtype="BF16", shards=2),
    "llama4 like Maverick": llama4(qk_norm=False, attention_bias=True),
    "llama4 without experts": llama4(experts=0, chunk=None, tied=True),
}
GGUF: dict[str, dict[str, Any]] = {
    "mixtral": mixtral(),
    "mixtral, experts in tensors of their own": mixtral(stacked=False),
    "mixtral Q4_0": mixtral(formats="Q4_0"),
    "mixtral, K-quants": mixtral(formats={"": "Q4_K", "gate_proj": "Q6_K", "router": "F16"}, dim=256, ffn_dim=256),
    "llama4": llama4(chunk=8192, floor=8192),
    "llama4 Q8_0, every layer, two active": llama4(chunk=8192, floor=8192, step=1, active=2, formats="Q8_0"),
    "llama4 without chunks": llama4(chunk=None),
    "llama4 without experts": llama4(experts=0, chunk=8192, floor=8192, attention_bias=True),
}  # fmt: skip


@pytest.mark.parametrize("case", HF)
def test_hugging_face(tmp_path: Path, case: str) -> None:
    tiny = write_tiny_hf(tmp_path / "model", **HF[case])
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)


@pytest.mark.parametrize("case", GGUF)
def test_gguf(tmp_path: Path, case: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "m.gguf", **GGUF[case])
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)


@pytest.mark.parametrize("shape", [mixtral(), llama4(chunk=8192, floor=8192)], ids=["mixtral", "llama4"])
def test_both_kinds_of_file_give_the_same_tensors(tmp_path: Path, shape: dict[str, Any]) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", seed=5, **shape)
    write_tiny_hf(tmp_path / "hf", seed=5, **shape)
    with open_model(tmp_path / "m.gguf") as one, open_model(tmp_path / "hf") as other:
        theirs = {t.name: canonical_rows(t) for t in other.tensors}
        assert {t.name for t in one.tensors} == set(theirs)
        for tensor in one.tensors:
            np.testing.assert_array_equal(canonical_rows(tensor), theirs[tensor.name], err_msg=tensor.name)
        assert one.config.experts == other.config.experts and one.config.plan == other.config.plan
        assert one.config.temperature == other.config.temperature


def test_experts_are_not_copied(tmp_path: Path) -> None:
    """Stacked or transposed, every expert's tensor points into the mapping, and reads nothing outside it."""
    for tiny in (write_tiny_hf(tmp_path / "hf", **llama4()), write_tiny_gguf(tmp_path / "m.gguf", **mixtral())):
        with open_model(tiny.path) as model:
            experts = [t for t in model.tensors if Role.EXPERT_GATE <= t.role <= Role.EXPERT_DOWN]
            assert {t.expert for t in experts} == {0, 1, 2, 3}
            for tensor in experts:
                assert tensor.make is None and tensor.file is not None and tensor.row_map is None
                assert tensor.address == tensor.file.address(tensor.offset)
            assert all(t.turned == {Role.EXPERT_DOWN: 64}.get(t.role, 128) for t in experts) or model.kind == "gguf"


# What does not fit the configuration

Tensors = dict[str, Any]
STACK = "model.layers.1.feed_forward.experts."
MOE = "model.layers.0.block_sparse_moe."


def _put(name: str, *shape: int) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


def _drop(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(name)


def _move(name: str, other: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({other: tensors.pop(name)})


WRONG: dict[str, tuple[dict[str, Any], Callable[[Tensors], Any], type[HerderError], str]] = {
    "router": (mixtral(), _drop(MOE + "gate.weight"), ModelFileError, r"mlp\.router\.weight is missing"),
    "expert": (
        mixtral(), _drop(MOE + "experts.3.w2.weight"), ModelFileError, r"experts\.3\.down_proj\.weight is missing",
    ),
    "fifth": (
        mixtral(), _put(MOE + "experts.4.w1.weight", 96, 64), ModelFileError, r"experts\.4\.gate_proj.* not belong",
    ),
    "shape": (
        mixtral(), _put(MOE + "experts.1.w1.weight", 64, 96), ModelFileError, "64 x 96, but config.json asks for 96 x",
    ),
    "router's shape": (mixtral(), _put(MOE + "gate.weight", 5, 64), ModelFileError, "5 x 64, .* asks for 4 x 64"),
    "name": (
        mixtral(), _put(MOE + "experts.0.w4.weight", 1), UnsupportedModel, r"experts\.0\.w4\.weight' is not known",
    ),
    "dense": (
        mixtral(), _put("model.layers.0.mlp.up_proj.weight", 96, 64), ModelFileError, r"up_proj\S+ does not belong",
    ),
    "twice": (
        mixtral(), _put("model.layers.0.mlp.experts.0.gate_proj.weight", 96, 64), ModelFileError, "is there twice",
    ),
    "Llama 4's name in a Mixtral": (
        mixtral(), _move(MOE + "gate.weight", "model.layers.0.feed_forward.router.weight"),
        UnsupportedModel, "not known here",
    ),
    "stack": (llama4(), _drop(STACK + "gate_up_proj"), ModelFileError, r"experts\.0\.gate_proj\.weight is missing"),
    "not turned": (llama4(), _put(STACK + "gate_up_proj", 4, 128, 64), ModelFileError, "asks for 4 x 64 x 128"),
    "fewer": (
        llama4(), _put(STACK + "down_proj", 3, 64, 64), ModelFileError, "3 x 64 x 64, but .* asks for 4 x 64 x 64",
    ),
    "stack in a dense layer": (
        llama4(), _move(STACK + "down_proj", STACK.replace("1", "0") + "down_proj"), ModelFileError, "is missing",
    ),
    "bits": (
        llama4(), lambda t: t.update({STACK + "down_proj": t[STACK + "down_proj"].astype(np.int8)}), UnsupportedModel,
        "stored as I8; supported are F32, F16 and BF16",
    ),
    "shared": (
        llama4(), _drop("model.layers.1.feed_forward.shared_expert.up_proj.weight"), ModelFileError,
        r"shared_expert\.up_proj\.weight is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    shape, change, kind, message = WRONG[case]
    directory = write_tiny_hf(tmp_path / "m", **shape).path
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(kind, match=message) as caught:
        open_model(directory)
    assert str(caught.value).startswith(str(directory)) and "\n" not in str(caught.value)


def test_experts_stacked_as_transformers_has_them_in_memory(tmp_path: Path) -> None:
    """Mixtral's gate_up_proj (experts, 2 ffn_dim, dim) and down_proj (experts, dim, ffn_dim): some tools save them."""
    tiny = write_tiny_hf(tmp_path / "m", **mixtral())
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    for layer in range(2):
        at = f"model.layers.{layer}.block_sparse_moe."
        gate, up, down = (
            np.stack([tensors.pop(f"{at}experts.{i}.{w}.weight") for i in range(4)]) for w in ("w1", "w3", "w2")
        )
        both = np.concatenate([gate, up], axis=1)
        new = f"model.layers.{layer}.mlp."
        tensors |= {f"{new}experts.gate_up_proj": both, f"{new}experts.down_proj": down}
        tensors[f"{new}gate.weight"] = tensors.pop(f"{at}gate.weight")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file)
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_under_the_names_it_has_in_a_larger_one(tmp_path: Path, prefix: str) -> None:
    tiny = write_tiny_hf(tmp_path / "m", **llama4())
    file = tiny.path / "model.safetensors"
    tensors = {name.replace("model.", prefix, 1): value for name, value in load_file(file).items()}
    if prefix.startswith("language"):
        tensors["language_model.lm_head.weight"] = tensors.pop("lm_head.weight")
    save_file(tensors, file)
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)


def test_quantized_matrices_of_llama4_come_out_in_canonical_order(tmp_path: Path) -> None:
    """Eight bits a weight and a scale a row (bitsandbytes): q, whose rows are interleaved, and an expert of its own."""
    tiny = write_tiny_hf(tmp_path / "m", **llama4(experts=2, tied=True))
    file = tiny.path / "model.safetensors"
    tensors, expected = load_file(file), dict(tiny.weights)
    for layer in (1, 3):  # experts one by one, as quantizers leave them
        at = f"model.layers.{layer}.feed_forward.experts."
        both, down = tensors.pop(f"{at}gate_up_proj"), tensors.pop(f"{at}down_proj")
        for expert in range(2):
            gate, up = np.split(both[expert].T, 2)
            named = {"gate_proj": gate, "up_proj": up, "down_proj": down[expert].T}
            tensors |= {f"{at}{expert}.{name}.weight": np.ascontiguousarray(rows) for name, rows in named.items()}
    quantized = {
        "model.layers.0.self_attn.q_proj.weight": "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.feed_forward.experts.1.up_proj.weight": "model.layers.1.mlp.experts.1.up_proj.weight",
    }
    for name, canonical in quantized.items():
        largest = np.abs(tensors[name]).max(axis=1)
        tensors[name] = np.rint(tensors[name] * (127 / largest[:, None])).astype(np.int8)
        tensors[name.removesuffix("weight") + "SCB"] = largest
        rows = np.abs(expected[canonical]).max(axis=1, keepdims=True)
        expected[canonical] = (np.rint(expected[canonical] * (127 / rows)) * (rows / 127)).astype(np.float32)
    save_file(tensors, file)
    config = json.loads((tiny.path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tiny.path / "config.json").write_text(json.dumps(config))
    with open_model(tiny.path) as model:
        made = {tensor.name for tensor in model.tensors if tensor.make is not None}
        assert made == set(quantized.values())
        for tensor in model.load():
            rows = reference.unpack(tensor.format, tensor.view(), tensor.rows, tensor.cols)
            rows = rows if tensor.row_map is None else rows[np.array(tensor.row_map)]
            np.testing.assert_allclose(rows, expected[tensor.name], atol=1e-6, err_msg=tensor.name)
