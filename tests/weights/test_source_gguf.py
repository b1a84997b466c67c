"""GGUF models as configuration and named tensors: what must be found, and what must be refused by name."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from herder.core.config import Rope
from herder.core.errors import HerderError, ModelFileError, ModelNotFound, UnsupportedModel
from herder.formats.reference import unpack
from herder.weights.names import Role
from herder.weights.source import ModelFiles, TensorSource, open_model
from tests.tiny import CHATML, TinyModel, write_tiny_gguf, write_tiny_hf

MIXED = {"": "Q4_K", "embed": "Q8_0", "v_proj": "Q6_K", "down_proj": "Q5_K", "k_proj": "Q3_K", "up_proj": "Q2_K"}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tied": False},
    "one KV head": {"kv_heads": 1},
    "as many KV heads": {"kv_heads": 4},
    "wide heads": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "half biases": {"attention_bias": True, "formats": {"": "F16", "bias": "F16", "norm": "BF16"}},
    "window": {"window": 32},
    "Q4_1 and Q8_0": {"formats": {"": "Q4_1", "embed": "Q8_0"}},
    "K-quants": {"dim": 256, "ffn_dim": 512, "formats": MIXED},
    "divisors": {"rope": Rope(5e5, factors=tuple(float(i + 1) for i in range(8)))},
    "linear": {"rope": Rope(kind="linear", factor=4.0)},
    "yarn": {"rope": Rope(kind="yarn", factor=4.0, original_context=64)},
    "longrope": {
        "rope": Rope(kind="longrope", factor=2.0, original_context=128, attention_factor=1.25, factors=(1.0,) * 8,
                     long_factors=tuple(float(i + 1) for i in range(8))),
    },
}  # fmt: skip


def canonical_rows(tensor: TensorSource) -> NDArray[np.uint8]:
    """The stored rows of a tensor in canonical order, read at its address."""
    if tensor.turned:  # (cols, rows) is stored, with `turned` values from one of its rows to the next
        size, span = tensor.format.block_bytes, (tensor.cols - 1) * tensor.turned + tensor.rows
        stored = np.frombuffer(ctypes.string_at(tensor.address, span * size), f"u{size}")
        columns = [stored[i * tensor.turned : i * tensor.turned + tensor.rows] for i in range(tensor.cols)]
        rows = np.ascontiguousarray(np.stack(columns, axis=1))
        assert rows.tobytes() == bytes(tensor.view())
        return rows.view(np.uint8)
    raw = np.frombuffer(ctypes.string_at(tensor.address, tensor.bytes), np.uint8).reshape(tensor.rows, -1)
    assert raw.tobytes() == bytes(tensor.view())
    return raw if tensor.row_map is None else raw[np.array(tensor.row_map)]


def assert_matches(model: ModelFiles, tiny: TinyModel) -> None:
    assert model.config == tiny.config
    assert {t.name for t in model.tensors} == set(tiny.stored)
    for tensor in model.load():
        np.testing.assert_array_equal(canonical_rows(tensor), tiny.stored[tensor.name], err_msg=tensor.name)
        assert (tensor.rows, tensor.cols) == tiny.weights[tensor.name].shape
        assert tensor.bytes == tensor.rows * tensor.format.row_bytes(tensor.cols)


@pytest.mark.parametrize("case", SHAPES)
def test_what_was_written_is_found(tmp_path: Path, case: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "m.gguf", **SHAPES[case])
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)
        assert (model.kind, model.path, model.paths) == ("gguf", tiny.path, (tiny.path,))
        assert model.file_bytes == tiny.path.stat().st_size
        assert not model.vocabulary_only


def test_only_q_and_k_are_reordered(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "m.gguf", attention_bias=True)
    with open_model(tiny.path) as model:
        assert {t.role for t in model.tensors if t.row_map is not None} == {Role.WQ, Role.WK}


def test_a_gguf_and_a_hugging_face_directory_give_the_same_tensors(tmp_path: Path) -> None:
    """The same seed: GGUF's interleaved q and k, weights and biases, come out in Hugging Face's order."""
    shape: dict[str, Any] = {"tied": False, "attention_bias": True, "mlp_bias": True}
    write_tiny_gguf(tmp_path / "m.gguf", seed=5, **shape)
    write_tiny_hf(tmp_path / "hf", seed=5, **shape)
    with open_model(tmp_path / "m.gguf") as one, open_model(tmp_path / "hf") as other:
        theirs = {t.name: canonical_rows(t) for t in other.tensors}
        assert {t.name for t in one.tensors} == set(theirs)
        for tensor in one.tensors:
            np.testing.assert_array_equal(canonical_rows(tensor), theirs[tensor.name])


@pytest.mark.oracle
@pytest.mark.parametrize("formats", ["F32", "Q8_0", {"": "Q4_K", "v_proj": "Q6_K"}], ids=["F32", "Q8_0", "Q4_K"])
def test_transformers_reads_the_same_weights(tmp_path: Path, formats: Any) -> None:
    """Its GGUF loader dequantizes and undoes the interleaving of q and k on its own."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    tiny = write_tiny_gguf(tmp_path / "m.gguf", dim=256, ffn_dim=256, kv_heads=2, tied=False, formats=formats)
    config = LlamaConfig(**load_gguf_checkpoint(str(tiny.path))["config"])
    theirs = load_gguf_checkpoint(str(tiny.path), True, LlamaForCausalLM(config))["tensors"]
    with open_model(tiny.path) as model:
        assert {tensor.name for tensor in model.tensors} == set(theirs)
        for tensor in model.tensors:
            ours = unpack(tensor.format, canonical_rows(tensor), tensor.rows, tensor.cols)
            np.testing.assert_array_equal(ours.reshape(theirs[tensor.name].shape), theirs[tensor.name].numpy())


def test_what_the_file_says_besides(tmp_path: Path) -> None:
    extra = {
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.eom_token_id": 7,
        "tokenizer.chat_template.tool_use": "t",
    }
    path = write_tiny_gguf(tmp_path / "m.gguf", metadata=extra, name="Tiny Llama", licence="mit").path
    with open_model(path) as model:
        assert (model.bos, model.eos, model.stop_token_ids) == (1, 2, frozenset({2, 5, 7}))
        assert (model.chat_template, model.chat_templates) == (CHATML, {"default": CHATML, "tool_use": "t"})
        assert (model.name, model.licence) == ("Tiny Llama", "mit")
        assert model.metadata["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_a_vocabulary_alone_opens(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "vocab.gguf", vocabulary_only=True, chat_template=None).path
    with open_model(path) as model:
        assert model.vocabulary_only and model.tensors == [] and model.eos == 2 and model.chat_template is None
        assert len(model.metadata["tokenizer.ggml.tokens"]) == 288
        with pytest.raises(UnsupportedModel, match="holds only a vocabulary"):
            _ = model.config


def test_the_default_model(smollm2: Path) -> None:
    with open_model(smollm2) as model:
        config = model.config
        assert (config.layers, config.dim, config.heads, config.kv_heads, config.ffn_dim) == (30, 576, 9, 3, 1536)
        assert (config.vocab, config.context, config.tied, config.rope.theta) == (49152, 8192, True, 1e5)
        assert (len(model.tensors), model.bos, model.eos, model.licence) == (272, 1, 2, "apache-2.0")
        assert config.parameters == sum(t.rows * t.cols for t in model.tensors) == 134_515_008


# Directories and names


def test_a_directory_with_one_gguf_opens(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    with open_model(tmp_path) as model:
        assert model.path.name == "m.gguf"
    write_tiny_gguf(tmp_path / "n.gguf")
    with pytest.raises(ModelNotFound, match=r"holds 2 GGUF models: give one, such as .*m\.gguf"):
        open_model(tmp_path)


def test_a_split_model_is_one_model(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(whole.path)
    writer = gguf.GGUFWriter(tmp_path / "parts" / "m.gguf", "llama", split_max_tensors=7)
    (tmp_path / "parts").mkdir()
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_model(tmp_path / "parts") as model:
        assert len(model.paths) == 3 and model.path.name == "m-00001-of-00003.gguf"
        assert_matches(model, whole)


def test_what_is_not_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        open_model(tmp_path / "no.gguf")
    with pytest.raises(ModelNotFound, match="holds neither config"):
        open_model(tmp_path)
    with pytest.raises(UnsupportedModel, match="give the directory"):
        open_model(tmp_path / "model.safetensors")


# Refusals


def refused(path: Path, kind: type[HerderError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "sigmoid": ({"llama.expert_gating_func": 2}, r"expert_gating_func = 2 \(experts not chosen by softmax\)"),
    "shared": ({"llama.expert_shared_count": 1}, r"expert_shared_count = 1 \(shared experts\)"),
    "projector": ({"general.architecture": "clip"}, "is an image encoder without its language model"),
    "mmproj": ({"general.type": "mmproj"}, "give the language model's GGUF for text, or for images the Hugging Face"),
    "parallel": ({"llama.use_parallel_residual": True}, "use_parallel_residual = True"),
    "not causal": ({"llama.attention.causal": False}, "attention.causal = False"),
    "partial RoPE": ({"llama.rope.dimension_count": 8}, "RoPE over 8 of 16 dimensions"),
    "values of another length": ({"llama.attention.value_length": 8}, "value_length 8 differs from key_length 16"),
    "attention scale": ({"llama.attention.scale": 0.5}, "attention.scale = 0.5"),
    "unknown": ({"llama.new_thing": 3}, r"'llama\.new_thing' = 3 is not known here"),
    "scaling": ({"llama.rope.scaling.type": "su"}, r"rope\.scaling\.type is 'su'"),
    "softcap": ({"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    "heads differ": ({"llama.attention.head_count_kv": [2, 4]}, r"head_count_kv differs between layers \(2 to 4\)"),
    "adapter": ({"general.type": "adapter"}, "GGUF of type 'adapter', not a model"),
    "old quantization": ({"general.quantization_version": 1, "general.file_type": 2}, "quantization_version is 1"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_would_change_the_computation_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = CHANGES[case]
    refused(rewritten(tmp_path, changes), UnsupportedModel, message)


def rewritten(tmp_path: Path, changes: dict[str, Any], drop: str = "", **shape: Any) -> Path:
    """A tiny model whose metadata was changed and extended; `drop` is a tensor left out. None removes a key."""
    reader = gguf.GGUFReader(write_tiny_gguf(tmp_path / "before.gguf", **shape).path)
    values = {n: (f.contents(), f.types) for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    for name, value in changes.items():
        kind = gguf.GGUFValueType.get_type(value) if value is not None else None
        if isinstance(value, int) and value >= 2**31:
            kind = gguf.GGUFValueType.UINT32
        types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32] if isinstance(value, list) else [kind]
        values[name] = (value, types)
    architecture = values.pop("general.architecture")[0]
    writer = gguf.GGUFWriter(tmp_path / "after.gguf", architecture)
    for name, (value, types) in values.items():
        if value is not None:
            writer.add_key_value(name, value, types[0], sub_type=types[-1] if len(types) > 1 else None)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "after.gguf"


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3", "Llama"])
def test_other_architectures_are_refused_by_name(tmp_path: Path, architecture: str) -> None:
    path = rewritten(tmp_path, {"general.architecture": architecture})
    refused(path, UnsupportedModel, f"has architecture '{architecture}', which is not supported; supported are llama")


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "layers missing": ({"llama.block_count": 3}, r"model\.layers\.2\.input_layernorm\S+ is missing"),
    "layers too many": ({"llama.block_count": 1}, r"model\.layers\.1\.\S+ does not belong to a model of 1 layers"),
    "width": (
        {"llama.embedding_length": 128, "llama.rope.dimension_count": None},
        r"token_embd\.weight has shape 288 x 64, .* asks for 288 x 128",
    ),
    "experts of no number": ({"llama.expert_count": 8}, "expert_used_count is missing or 0, with 8 experts"),
    "no experts": (
        {"llama.expert_count": 8, "llama.expert_used_count": 2}, r"layers\.0\.mlp\.router\.weight is missing",
    ),
    "too few experts": ({"llama.expert_count": 1, "llama.expert_used_count": 2}, "2 experts for each token are more"),
    "vocabulary": ({"llama.vocab_size": 300}, r"vocab_size is 300, but token_embd\.weight has 288 rows"),
    "heads": ({"llama.attention.head_count": 3}, "embedding_length 64 is not a multiple of head_count 3"),
    "KV heads": ({"llama.attention.head_count_kv": 3}, "4 heads are not a multiple of 3 KV heads"),
    "odd heads": (
        {"llama.attention.key_length": 17, "llama.attention.value_length": 17, "llama.rope.dimension_count": 17},
        "head_dim is 17: RoPE needs an even number",
    ),
    "endless heads": (
        {"llama.attention.head_count": 2**24, "llama.attention.key_length": 2**24,
         "llama.attention.value_length": 2**24, "llama.rope.dimension_count": 2**24},
        "has shape 64 x 64, but the model's configuration asks for 281474976710656 x 64",
    ),
    "no width": ({"llama.embedding_length": 0}, r"llama\.embedding_length is 0: expected a whole number between 1 and"),
    "no layers": ({"llama.block_count": 10**6}, r"llama\.block_count is 1000000: expected a whole number"),
    "no eps": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon is nan"),
    "theta": ({"llama.rope.freq_base": -1.0}, r"freq_base is -1\.0: expected a finite number above 1"),
    "type of a key": ({"llama.context_length": "long"}, r"llama\.context_length is 'long'"),
    "key missing": ({"llama.context_length": None}, r"llama\.context_length is missing"),
    "stop token": ({"tokenizer.ggml.eos_token_id": 288}, r"eos_token_id is 288, outside the vocabulary of 288"),
    "template": ({"tokenizer.chat_template": 3}, r"tokenizer\.chat_template is 3: expected a string"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_named(tmp_path: Path, case: str) -> None:
    changes, message = CONTRADICTIONS[case]
    refused(rewritten(tmp_path, changes), ModelFileError, message)


@pytest.mark.parametrize("changes", [
    {"llama.attention.head_count_kv": [2, 2]}, {"llama.expert_count": 0, "llama.expert_used_count": 0},
    {"llama.vocab_size": None}, {"llama.attention.scale": 0.25}, {"llama.rope.scaling.type": "none"},
    {"llama.tensor_data_layout": "Meta AI original pth"}, {"llama.rope.dimension_count": None},
    {"tokenizer.ggml.eos_token_id": 2**32 - 1}, {"llama.logit_scale": 1.0}, {"general.tags": [1, 2]},
])  # fmt: skip
def test_what_says_nothing_new_is_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    with open_model(rewritten(tmp_path, changes)) as model:
        assert replace(model.config, name="") == replace(open_model(tmp_path / "before.gguf").config, name="")


def test_a_factor_without_a_type_is_linear(tmp_path: Path) -> None:
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        with open_model(rewritten(tmp_path, {key: 4.0})) as model:
            assert model.config.rope == Rope(kind="linear", factor=4.0)


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.1.attn_k.weight", "blk.0.ffn_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    refused(rewritten(tmp_path, {}, drop=name), ModelFileError, "tensor model.* is missing")


def test_a_bias_that_only_some_layers_have_is_named(tmp_path: Path) -> None:
    path = rewritten(tmp_path, {}, drop="blk.1.attn_k.bias", attention_bias=True)
    refused(path, ModelFileError, r"tensor model\.layers\.1\.self_attn\.k_proj\.bias is missing")


def test_unknown_tensors_and_wrong_factors_are_named(tmp_path: Path) -> None:
    def with_tensor(name: str, values: NDArray[Any]) -> Path:
        reader = gguf.GGUFReader(write_tiny_gguf(tmp_path / "before.gguf").path)
        writer = gguf.GGUFWriter(tmp_path / "extra.gguf", "llama")
        for key, field in reader.fields.items():
            if not key.startswith(("GGUF.", "general.architecture")):
                sub = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "extra.gguf"

    ones = np.ones(8, np.float32)
    refused(
        with_tensor("blk.0.attn_q_norm.weight", ones), UnsupportedModel, r"'blk\.0\.attn_q_norm\.weight' is not known"
    )
    refused(with_tensor("rope_freqs.weight", ones[:7]), ModelFileError, "rope_freqs.weight has 7 values, not 8")
    refused(with_tensor("rope_freqs.weight", ones * 0), ModelFileError, r"rope_freqs\.weight holds 0\.0")
    refused(with_tensor("rope_freqs.weight", ones.astype(np.float16)), ModelFileError, "is F16 of shape")
    refused(with_tensor("blk.0.attn_k.weight.weight", ones), UnsupportedModel, "is not known")
    refused(with_tensor("output.weight", np.ones((288, 32), np.float32)), ModelFileError, "288 x 32")


def test_a_file_truncated_while_loading_is_noticed_before_it_is_touched(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "m.gguf")
    with open_model(tiny.path) as model:
        tensors = model.load()
        next(tensors).view()
        os.truncate(tiny.path, 4096)
        with pytest.raises(ModelFileError, match="changed while it was being read"):
            next(tensors)
        with pytest.raises(ModelFileError, match="changed"):
            model.verify_unchanged()


def test_files_are_closed_when_opening_fails(tmp_path: Path) -> None:
    path = rewritten(tmp_path, {"llama.block_count": 3})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(HerderError):
            open_model(path)
    assert len(os.listdir("/proc/self/fd")) == before
