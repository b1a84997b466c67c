"""config.json of real models and of transformers, and what must be refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from herder.core.config import LayerPlan, ModelConfig, Rope
from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.weights.config_hf import config_from_hf
from tests.tiny import hf_config, tiny_config

LLAMA_32_1B: dict[str, Any] = {  # meta-llama/Llama-3.2-1B-Instruct
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA_2_7B: dict[str, Any] = {  # meta-llama/Llama-2-7b-chat-hf
    "_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.32.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
MISTRAL_V01: dict[str, Any] = {  # mistralai/Mistral-7B-Instruct-v0.1
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
SMOLLM2_135M: dict[str, Any] = {  # HuggingFaceTB/SmolLM2-135M-Instruct
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "transformers_version": "4.42.3",
    "use_cache": True, "vocab_size": 49152,
}  # fmt: skip


def test_llama_32_1b() -> None:
    config = config_from_hf("config.json", LLAMA_32_1B)
    assert config == ModelConfig(
        architecture="llama", layers=16, dim=2048, heads=32, kv_heads=8, head_dim=64, ffn_dim=8192, vocab=128256,
        context=131072, norm_eps=1e-5, rope=Rope(5e5, "llama3", 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
        plan=(LayerPlan(),) * 16, tied=True,
    )  # fmt: skip
    assert round(config.parameters / 1e9, 3) == 1.236
    assert config.kv_bytes(1) == 32768


def test_llama_2_7b_takes_theta_from_the_defaults() -> None:
    config = config_from_hf("config.json", LLAMA_2_7B)
    assert (config.rope, config.head_dim, config.context) == (Rope(10000.0), 128, 4096)
    assert round(config.parameters / 1e9, 3) == 6.738


def test_mistral_v01_slides_and_v02_does_not() -> None:
    assert config_from_hf("c", MISTRAL_V01).plan == (LayerPlan(window=4096),) * 32
    assert config_from_hf("c", {**MISTRAL_V01, "sliding_window": None}).plan == (LayerPlan(),) * 32
    without = {key: value for key, value in MISTRAL_V01.items() if key != "sliding_window"}
    with pytest.raises(ModelFileError, match="sliding_window is missing"):  # transformers would take 4096
        config_from_hf("c", without)


def test_smollm2() -> None:
    config = config_from_hf("c", SMOLLM2_135M)
    assert (config.parameters, config.tied, config.rope.theta) == (134_515_008, True, 100000.0)


def test_head_dim_may_differ_from_dim_over_heads() -> None:
    config = config_from_hf("c", {**hf_config(tiny_config()), "head_dim": 32})
    assert config.head_dim == 32


ROPES: dict[str, tuple[dict[str, Any], Rope]] = {
    "old linear": ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 1e6}, Rope(1e6, "linear", 2.0)),
    "both spellings": (
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}}, Rope(10000.0, "linear", 2.0),
    ),
    "old dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 8.0}}, Rope(kind="dynamic", factor=8.0, original_context=256),
    ),
    "old yarn": (
        {"rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "finetuned": True}},
        Rope(kind="yarn", factor=16.0, original_context=64),
    ),
    "yarn without a factor": (
        {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}},
        Rope(kind="yarn", factor=4.0, original_context=64),
    ),
    "rope_scaling wins": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}, "rope_parameters": {"type": "x"}},
        Rope(7.0, "linear", 2.0),
    ),
    "theta inside wins": ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, Rope(5e5)),
    "theta outside": ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 2e4}, Rope(2e4)),
    "original outside": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
         "original_max_position_embeddings": 32}, Rope(kind="llama3", factor=8.0, original_context=32),
    ),
    "original from the context": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
        Rope(kind="llama3", factor=8.0, original_context=256),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROPES)
def test_rope(case: str) -> None:
    changes, rope = ROPES[case]
    raw = {key: value for key, value in hf_config(tiny_config()).items() if key != "rope_parameters"}
    assert config_from_hf("c", {**raw, **changes}).rope == rope


REFUSED: dict[str, tuple[dict[str, Any], type[HerderError], str]] = {
    "qwen": ({"model_type": "qwen2"}, UnsupportedModel, "'qwen2' is not supported; supported are llama, mistral, m"),
    "no type": ({"model_type": None}, ModelFileError, "model_type is missing"),
    "classifier": ({"architectures": ["LlamaForTokenClassification"]}, UnsupportedModel, "architectures is"),
    "experts": ({"num_local_experts": 8}, UnsupportedModel, r"num_local_experts = 8 \(mixture of experts\)"),
    "gelu": ({"hidden_act": "gelu"}, UnsupportedModel, r"hidden_act = 'gelu' \(only SwiGLU\)"),
    "interleaved": ({"rope_interleaved": True}, UnsupportedModel, "rope_interleaved = True"),
    "partial": ({"partial_rotary_factor": 0.5}, UnsupportedModel, "partial_rotary_factor = 0.5"),
    "granite": ({"embedding_multiplier": 12.0}, UnsupportedModel, "embedding_multiplier = 12.0"),
    "pruned": ({"pruned_heads": {"1": [2]}}, UnsupportedModel, "pruned_heads"),
    "unknown": ({"shiny_new_thing": [1]}, UnsupportedModel, r"'shiny_new_thing' = \[1\] is not known here"),
    "window of a llama": ({"sliding_window": 4096}, UnsupportedModel, "sliding_window = 4096 in a llama model"),
    "layer types": ({"layer_types": ["full_attention", "chunked_attention"]}, UnsupportedModel, "layer_types is"),
    "heads": ({"num_attention_heads": 3, "head_dim": None}, ModelFileError, "hidden_size 64 is not a multiple"),
    "float width": ({"hidden_size": 64.0}, ModelFileError, "hidden_size is 64.0: expected a whole number"),
    "bool width": ({"num_hidden_layers": True}, ModelFileError, "num_hidden_layers is True"),
    "many layers": ({"num_hidden_layers": 10**9}, ModelFileError, "num_hidden_layers is 1000000000"),
    "no context": ({"max_position_embeddings": None}, ModelFileError, "max_position_embeddings is missing"),
    "eps": ({"rms_norm_eps": 0}, ModelFileError, "rms_norm_eps is 0"),
    "endless eps": ({"rms_norm_eps": 10**400}, ModelFileError, "rms_norm_eps is 10000"),
    "infinite theta": ({"rope_parameters": {"rope_theta": float("inf")}}, ModelFileError, "rope_theta is inf"),
    "tied to a string": ({"tie_word_embeddings": "yes"}, ModelFileError, "tie_word_embeddings is 'yes'"),
    "rope of a list": ({"rope_scaling": [1]}, ModelFileError, "rope_scaling is .1.: expected an object"),
    "rope of a kind": ({"rope_scaling": {"rope_type": "mrope"}}, UnsupportedModel, "rope_scaling is of type 'mrope'"),
    "rope key": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}}, UnsupportedModel,
        "'rope_scaling.alpha' = 1000.0 is not known for dynamic",
    ),
    "rope factor": ({"rope_scaling": {"rope_type": "linear"}}, ModelFileError, "rope_scaling.factor is missing"),
    "rope bounds": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        ModelFileError, "low_freq_factor 4 is above high_freq_factor 1",
    ),
    "rope lists": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}},
        ModelFileError, "long_factor has 7 values, not head_dim / 2 = 8",
    ),
    "rope list of strings": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": ["a"] * 8, "long_factor": [1.0] * 8}},
        ModelFileError, "short_factor is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_key(case: str) -> None:
    changes, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as caught:
        config_from_hf("dir/config.json", {**hf_config(tiny_config()), **changes})
    assert str(caught.value).startswith("dir/config.json: ") and "\n" not in str(caught.value)


def test_mistral_has_no_biases() -> None:
    raw = hf_config(tiny_config(architecture="mistral"))
    assert config_from_hf("c", {**raw, "attention_bias": False}).attention_bias is False
    with pytest.raises(UnsupportedModel, match="Mistral has no biases"):
        config_from_hf("c", {**raw, "attention_bias": True})


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_every_key_that_transformers_writes_is_known(tmp_path: Path, kind: str) -> None:
    from transformers import LlamaConfig, MistralConfig

    theirs = LlamaConfig() if kind == "llama" else MistralConfig()
    theirs.save_pretrained(tmp_path)
    for raw in (json.loads((tmp_path / "config.json").read_text()), {**theirs.to_dict(), "model_type": kind}):
        config = config_from_hf("c", raw)
        assert (config.dim, config.heads, config.vocab) == (
            theirs.hidden_size,
            theirs.num_attention_heads,
            theirs.vocab_size,
        )
        assert config.plan[0].window == getattr(theirs, "sliding_window", None)
