"""The keys of config.json that every architecture has: those that change nothing, those refused, and RoPE.

Keys as in transformers' PreTrainedConfig and modeling_rope_utils. Every key is honoured, known to change nothing about
the forward pass, refused because of its value, or refused because nobody here knows what it does.
"""

from __future__ import annotations

from typing import Any

from herder.core.config import ModelConfig, Rope
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import REQUIRED, Fields, short

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24  # dim, ffn_dim, heads, head_dim
MAX_VOCAB = 1 << 27
MAX_EXPERTS = 4096
MAX_SIDE = 1 << 14  # pixels

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
        "gradient_checkpointing keys_to_ignore_at_inference router_aux_loss_coef router_jitter_noise projector_dropout"
    ),
    "how transformers runs or returns things, not what it computes": (
        "use_cache return_dict return_dict_in_generate output_attentions output_hidden_states output_scores "
        "output_router_logits torchscript use_bfloat16 _attn_implementation _attn_implementation_autoset "
        "attn_implementation _flash_attn_2_enabled chunk_size_feed_forward is_decoder tf_legacy_loss fuse_max_seq_len "
        "remove_invalid_values"
    ),
    "other heads than the language model's": (
        "num_labels id2label label2id problem_type task_specific_params finetuning_task classifier_dropout"
    ),
    "read beside this file (weights/quantized) when the weights are": "quantization_config compression_config",
    "says that the experts' modules are separate for a quantizer; the tensors' names say so too": "for_llm_compressor",
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
    ("rope_interleaved", (False,), "interleaved rotation"),
    ("partial_rotary_factor", (1, 1.0), "RoPE over a part of each head"),
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


def common_keys(keys: Fields, activations: tuple[str, ...] = ("silu", "swish"), meaning: str = "only SwiGLU") -> None:
    """Reads the keys that change nothing, and refuses those that change what nothing here computes."""
    keys.neutral("hidden_act", activations, meaning)
    for key, allowed, change in _NEUTRAL:
        keys.neutral(key, allowed, change)
    for names in _HARMLESS.values():
        for key in names.split():
            keys.get(key)


def refuse_unknown(keys: Fields) -> None:
    """Raises UnsupportedModel for a key with a value that nothing has asked for."""
    if unknown := keys.unread():
        raise UnsupportedModel(
            f"{keys.where}: {short(keys.prefix + unknown[0])} = {short(keys.get(unknown[0]))} is not known here and "
            "may change the computation: remove the key if it does not, or use a newer version of herder"
        )


def nested(keys: Fields, key: str) -> Fields:
    """The keys of an object inside this one, named with it in errors."""
    value = keys.get(key)
    if not isinstance(value, dict):
        raise keys.wrong(key, value, "expected an object")
    prefix = f"{keys.prefix}{key}."
    return Fields(keys.where, {prefix + name: item for name, item in value.items()}, prefix)


def side(keys: Fields, key: str) -> int:
    """Pixels a side of a square, which may be written as one number or as two equal ones."""
    value = keys.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        raise keys.wrong(key, value, f"expected a whole number between 1 and {MAX_SIDE}, of a square")
    return value


def image_token(keys: Fields, high: int) -> int:
    """image_token_index, or image_token_id as newer files write it: at most `high`."""
    token = keys.integer("image_token_id", None, low=0, high=high)
    index: int = keys.integer("image_token_index", REQUIRED if token is None else token, low=0, high=high)
    if token not in (None, index):
        raise keys.wrong("image_token_id", token, f"image_token_index says {index}")
    return index


def flags(keys: Fields, key: str, count: int) -> tuple[bool, ...] | None:
    """A list with 0 or 1 for each of `count` layers (further entries are not used); None when absent or empty."""
    value = keys.get(key)
    if value is None or value == []:
        return None
    if (
        not isinstance(value, list)
        or len(value) < count
        or any(type(v) not in (int, bool) or v not in (0, 1) for v in value)
    ):
        raise keys.wrong(key, value, f"expected 0 or 1 for each of {count} layers")
    return tuple(bool(v) for v in value[:count])


def indices(keys: Fields, key: str, count: int) -> tuple[int, ...] | None:
    """A list of different numbers below `count`, in rising order; None when absent."""
    value = keys.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or any(type(v) is not int or not 0 <= v < count for v in value):
        raise keys.wrong(key, value, f"expected a list of numbers from 0 to {count - 1}")
    if sorted(set(value)) != value:
        raise keys.wrong(key, value, "expected each number once, in rising order")
    return tuple(value)


def read_rope(keys: Fields, context: int, default_theta: float = 10000.0) -> Rope:
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
    theta = rope.number("rope_theta", top_theta or default_theta, low=1.0)
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


def check_factor_lists(where: str, config: ModelConfig) -> None:
    for key, factors in (("short_factor", config.rope.factors), ("long_factor", config.rope.long_factors)):
        if factors is None or len(factors) != config.head_dim // 2:
            count = 0 if factors is None else len(factors)
            raise ModelFileError(f"{where}: {key} has {count} values, not head_dim / 2 = {config.head_dim // 2}")
