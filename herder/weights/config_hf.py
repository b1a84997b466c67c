"""Hugging Face config.json -> ModelConfig: dispatch by model_type; llama, mistral and mixtral are read here.

Keys as in transformers' LlamaConfig, MistralConfig and MixtralConfig; keys_hf.py has what all architectures share,
config_llama4.py and config_mllama.py those two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herder.core.config import Experts, LayerPlan, ModelConfig
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.config_llama4 import llama4, llama4_text
from herder.weights.config_mllama import mllama, mllama_text
from herder.weights.fields import REQUIRED, Fields, short
from herder.weights.keys_hf import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
    check_factor_lists,
    common_keys,
    read_rope,
    refuse_unknown,
)


def config_from_hf(where: str, values: Mapping[str, Any], name: str = "", licence: str = "") -> ModelConfig:
    """The model's shape. where names config.json in errors. Raises ModelFileError, UnsupportedModel."""
    keys = Fields(where, values)
    model_type = keys.text("model_type")
    if model_type not in _READERS:
        raise UnsupportedModel(
            f"{where}: model_type {short(model_type)} is not supported; supported are {', '.join(_READERS)}"
        )
    architecture, read = _READERS[model_type]
    classes = keys.get("architectures") or [architecture]
    if classes != [architecture]:
        raise UnsupportedModel(
            f"{where}: architectures is {short(classes)}; of model_type {model_type} only {architecture} is supported"
        )
    config: ModelConfig = read(keys, name, licence)
    if config.rope.factors is not None or config.rope.long_factors is not None:
        check_factor_lists(where, config)
    return config


def _dense(keys: Fields, name: str, licence: str) -> ModelConfig:
    """llama, mistral, mixtral."""
    where, model_type = keys.where, keys.text("model_type")
    common_keys(keys)
    layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    dim = keys.integer("hidden_size", high=MAX_WIDTH)
    heads = keys.integer("num_attention_heads", high=MAX_WIDTH)
    if keys.get("head_dim") is None and dim % heads:
        raise ModelFileError(f"{where}: hidden_size {dim} is not a multiple of num_attention_heads {heads}")
    context = keys.integer("max_position_embeddings")
    ffn_dim = keys.integer("intermediate_size", high=MAX_WIDTH)
    experts = _experts(keys, ffn_dim) if model_type == "mixtral" else None
    window = _window(keys, model_type)
    config = ModelConfig(
        architecture=model_type,
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads", heads if model_type == "llama" else REQUIRED, high=MAX_WIDTH),
        head_dim=keys.integer("head_dim", dim // heads, high=MAX_WIDTH),
        ffn_dim=ffn_dim,
        vocab=keys.integer("vocab_size", high=MAX_VOCAB),
        context=context,
        norm_eps=keys.number("rms_norm_eps"),
        rope=read_rope(keys, context, 1e6 if model_type == "mixtral" else 1e4),
        plan=(LayerPlan(window=window, experts=experts is not None),) * layers,
        tied=keys.flag("tie_word_embeddings", False),
        attention_bias=model_type == "llama" and keys.flag("attention_bias", False),
        mlp_bias=model_type == "llama" and keys.flag("mlp_bias", False),
        name=name,
        licence=licence,
        experts=experts,
    )
    family = model_type.capitalize()
    keys.neutral("attention_bias", (False, config.attention_bias), f"{family} has no biases")
    keys.neutral("mlp_bias", (False, config.mlp_bias), f"{family} has no biases")
    for key in ("num_local_experts", "num_experts"):
        keys.neutral(key, (0, 1) if experts is None else (experts.count,), "mixture of experts")
    refuse_unknown(keys)
    return config


def _experts(keys: Fields, ffn_dim: int) -> Experts:
    """transformers' defaults are not taken: a file that does not say how many experts it has is incomplete."""
    count = keys.integer("num_local_experts", high=MAX_EXPERTS)
    active = keys.integer("num_experts_per_tok", high=MAX_EXPERTS)
    return Experts(count=count, active=active, ffn_dim=ffn_dim, router="softmax")


def _window(keys: Fields, model_type: str) -> int | None:
    """Mistral's sliding window, which Mixtral may have too; Llama has none. `layer_types` may say the same, and nothing
    else."""
    if model_type == "mistral" and not keys.has("sliding_window"):
        raise ModelFileError(f"{keys.where}: sliding_window is missing: write null for full attention, or the window")
    window: int | None = keys.integer("sliding_window", None)
    if model_type == "llama" and window is not None:
        raise UnsupportedModel(
            f"{keys.where}: sliding_window = {window} in a llama model, where transformers ignores it: write null "
            "there if the model was made for full attention"
        )
    if not keys.flag("use_sliding_window", True) and window is not None:
        raise UnsupportedModel(
            f"{keys.where}: sliding_window = {window} with use_sliding_window false: write null for one"
        )
    types = keys.get("layer_types")
    wanted = "sliding_attention" if window is not None else "full_attention"
    if types is not None and (not isinstance(types, list) or any(t != wanted for t in types)):
        raise UnsupportedModel(f"{keys.where}: layer_types is {short(types)}; supported is {wanted} in every layer")
    return window


# model_type: (the class whose weights these are, the reader)
_READERS = {
    "llama": ("LlamaForCausalLM", _dense),
    "mistral": ("MistralForCausalLM", _dense),
    "mixtral": ("MixtralForCausalLM", _dense),
    "llama4": ("Llama4ForConditionalGeneration", llama4),
    "llama4_text": ("Llama4ForCausalLM", llama4_text),
    "mllama": ("MllamaForConditionalGeneration", mllama),
    "mllama_text_model": ("MllamaForCausalLM", mllama_text),
}
