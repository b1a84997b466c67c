"""Hugging Face config.json -> ModelConfig, for model_type llama and mistral.

Keys as in transformers' LlamaConfig, MistralConfig and PreTrainedConfig. Every key is honoured, known to change nothing
about the forward pass, refused because of its value, or refused because nobody here knows what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herder.core.config import LayerPlan, ModelConfig, Rope
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import REQUIRED, Fields, short

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24  # dim, ffn_dim, heads, head_dim
MAX_VOCAB = 1 << 27

# Keys that may have any value: the reason, and the keys.
_HARMLESS = {
    "provenance and bookkeeping": (
        "_name_or_path name_or_path transformers_version transformers.js_config torch_dtype dtype _commit_hash "
        "unsloth_fixed unsloth_version model_name is_llama_config"
    ),
    "custom code, which transformers too leaves alone unless told to trust it; `architectures` names the class": (
        "auto_map"
    ),
    "training only": (
        "attention_dropout hidden_dropout dropout embd_pdrop resid_pdrop attn_pdrop initializer_range pretraining_tp "
        "gradient_checkpointing keys_to_ignore_at_inference"
    ),
    "how transformers runs or returns things, not what it computes": (
        "use_cache return_dict return_dict_in_generate output_attentions output_hidden_states output_scores "
        "torchscript use_bfloat16 _attn_implementation _attn_implementation_autoset attn_implementation "
        "_flash_attn_2_enabled chunk_size_feed_forward is_decoder tf_legacy_loss fuse_max_seq_len remove_invalid_values"
    ),
    "other heads than the language model's": (
        "num_labels id2label label2id problem_type task_specific_params finetuning_task classifier_dropout"
    ),
    "the tokenizer's, and ids that are read with generation_config.json": (
        "tokenizer_class vocab_type prefix sep_token_id unk_token_id pad_token_id bos_token_id eos_token_id "
        "decoder_start_token_id max_sequence_length"
    ),
    "defaults of generation, which is the caller's": (
        "do_sample temperature top_k top_p typical_p num_beams num_beam_groups num_return_sequences max_length "
        "min_length early_stopping length_penalty repetition_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size bad_words_ids diversity_penalty forced_bos_token_id forced_eos_token_id "
        "suppress_tokens begin_suppress_tokens exponential_decay_length_penalty"
    ),
}

# Keys that change the computation unless they have one of these values.
_NEUTRAL: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("hidden_act", ("silu", "swish"), "only SwiGLU"),
    ("rope_interleaved", (False,), "interleaved rotation"),
    ("partial_rotary_factor", (1, 1.0), "RoPE over a part of each head"),
    ("num_local_experts", (0, 1), "mixture of experts"),
    ("num_experts", (0, 1), "mixture of experts"),
    ("is_encoder_decoder", (False,), "encoder and decoder"),
    ("add_cross_attention", (False,), "cross attention"),
    ("cross_attention_hidden_size", (), "cross attention"),
    ("tie_encoder_decoder", (False,), "encoder and decoder"),
    ("pruned_heads", ({},), "pruned heads"),
    ("logit_scale", (1, 1.0), "scaled logits"),
    ("embedding_multiplier", (1, 1.0), "scaled embeddings"),
    ("residual_multiplier", (1, 1.0), "scaled residuals"),
    ("attention_multiplier", (), "scaled attention"),
)

_ROPE_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate", "finetuned",
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}  # fmt: skip


def config_from_hf(where: str, values: Mapping[str, Any], name: str = "", licence: str = "") -> ModelConfig:
    """The model's shape. where names config.json in errors. Raises ModelFileError, UnsupportedModel."""
    keys = Fields(where, values)
    model_type = keys.text("model_type")
    if model_type not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{where}: model_type {short(model_type)} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    classes = keys.get("architectures") or [ARCHITECTURES[model_type]]
    if classes != [ARCHITECTURES[model_type]]:
        raise UnsupportedModel(
            f"{where}: architectures is {short(classes)}; of model_type {model_type} only "
            f"{ARCHITECTURES[model_type]} is supported"
        )
    quantization = keys.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedModel(
            f"{where}: weights quantized with {short(method)} are not supported: use the unquantized model or a GGUF"
        )
    for key, allowed, meaning in _NEUTRAL:
        keys.neutral(key, allowed, meaning)
    for names in _HARMLESS.values():
        for key in names.split():
            keys.get(key)

    layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    dim = keys.integer("hidden_size", high=MAX_WIDTH)
    heads = keys.integer("num_attention_heads", high=MAX_WIDTH)
    if keys.get("head_dim") is None and dim % heads:
        raise ModelFileError(f"{where}: hidden_size {dim} is not a multiple of num_attention_heads {heads}")
    context = keys.integer("max_position_embeddings")
    config = ModelConfig(
        architecture=model_type,
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads", heads if model_type == "llama" else REQUIRED, high=MAX_WIDTH),
        head_dim=keys.integer("head_dim", dim // heads, high=MAX_WIDTH),
        ffn_dim=keys.integer("intermediate_size", high=MAX_WIDTH),
        vocab=keys.integer("vocab_size", high=MAX_VOCAB),
        context=context,
        norm_eps=keys.number("rms_norm_eps"),
        rope=_rope(keys, context),
        plan=(LayerPlan(window=_window(keys, model_type)),) * layers,
        tied=keys.flag("tie_word_embeddings", False),
        attention_bias=model_type == "llama" and keys.flag("attention_bias", False),
        mlp_bias=model_type == "llama" and keys.flag("mlp_bias", False),
        name=name,
        licence=licence,
    )
    keys.neutral("attention_bias", (False, config.attention_bias), "Mistral has no biases")
    keys.neutral("mlp_bias", (False, config.mlp_bias), "Mistral has no biases")
    if unknown := keys.unread():
        raise UnsupportedModel(
            f"{where}: {short(unknown[0])} = {short(keys.get(unknown[0]))} is not known here and may change the "
            "computation: remove the key if it does not, or use a newer version of herder"
        )
    if config.rope.factors is not None or config.rope.long_factors is not None:
        _check_factor_lists(where, config)
    return config


def _window(keys: Fields, model_type: str) -> int | None:
    """Mistral's sliding window; Llama has none. `layer_types` may say the same a second time, and nothing else."""
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


def _rope(keys: Fields, context: int) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before). As in transformers, the
    latter wins when both are there, and an original context defaults to max_position_embeddings."""
    old, new = keys.get("rope_scaling"), keys.get("rope_parameters")
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, dict):
            raise keys.wrong(key, value, "expected an object or null")
    scaling = old or new or {}
    label = "rope_scaling" if old else "rope_parameters"
    rope = Fields(keys.where, {f"{label}.{key}": value for key, value in scaling.items()}, f"{label}.")
    kind = rope.text("rope_type", rope.text("type", "default"))
    rope.get("type")  # both spellings may be there
    if kind not in _ROPE_KEYS:
        raise UnsupportedModel(f"{keys.where}: {label} is of type {short(kind)}; supported are {', '.join(_ROPE_KEYS)}")
    top_theta = keys.number("rope_theta", None, low=1.0)
    theta = rope.number("rope_theta", top_theta or 10000.0, low=1.0)
    rope.neutral("partial_rotary_factor", (1, 1.0), "RoPE over a part of each head")
    top_original = keys.integer("original_max_position_embeddings", None)
    original = top_original or rope.integer("original_max_position_embeddings", None)
    if unknown := [key for key in rope.unread() if key not in _ROPE_KEYS[kind]]:
        raise UnsupportedModel(
            f"{keys.where}: {short(rope.prefix + unknown[0])} = {short(rope.get(unknown[0]))} is not known for {kind}"
        )
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", rope.number("factor"))
    if kind == "dynamic":  # its original context is the model's, whatever the file says besides
        return Rope(theta, "dynamic", rope.number("factor"), context)
    original = original or context
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low > high:
            raise ModelFileError(f"{keys.where}: {label}.low_freq_factor {low:g} is above high_freq_factor {high:g}")
        return Rope(theta, "llama3", rope.number("factor"), original, low_freq_factor=low, high_freq_factor=high)
    factor = rope.number("factor", context / original)
    attention = rope.number("attention_factor", None)
    if kind == "yarn":
        return Rope(
            theta, "yarn", factor, original,
            beta_fast=rope.number("beta_fast", 32.0), beta_slow=rope.number("beta_slow", 1.0),
            mscale=_optional(rope, "mscale"), mscale_all_dim=_optional(rope, "mscale_all_dim"),
            truncate=rope.flag("truncate", True), attention_factor=attention,
        )  # fmt: skip
    return Rope(
        theta, "longrope", factor, original, attention_factor=attention,
        factors=_list(rope, "short_factor"), long_factors=_list(rope, "long_factor"),
    )  # fmt: skip


def _optional(rope: Fields, key: str) -> float | None:
    """mscale keys: 0 means absent."""
    value: float | None = None if rope.get(key) == 0 else rope.number(key, None)
    return value


def _list(rope: Fields, key: str) -> tuple[float, ...]:
    value = rope.get(key)
    return rope.numbers(key, len(value) if isinstance(value, list) else 0)


def _check_factor_lists(where: str, config: ModelConfig) -> None:
    for key, factors in (("short_factor", config.rope.factors), ("long_factor", config.rope.long_factors)):
        if factors is None or len(factors) != config.head_dim // 2:
            count = 0 if factors is None else len(factors)
            raise ModelFileError(f"{where}: {key} has {count} values, not head_dim / 2 = {config.head_dim // 2}")
