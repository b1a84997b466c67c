"""GGUF metadata -> ModelConfig, for architectures llama (with or without experts) and llama4.

Keys as in ggml's docs/gguf.md. Every key of the architecture's namespace is honoured, known to change nothing, or
refused by name. What llama.cpp decides for llama4 without a key (`src/models/llama4.cpp`) is decided the same way here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from herder.core.config import Experts, LayerPlan, ModelConfig, Rope, Temperature
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import Fields, short
from herder.weights.gguf import StringArray
from herder.weights.names import ATTENTION_BIASES, MLP_BIASES, Role

ARCHITECTURES = ("llama", "llama4")
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24  # dim, ffn_dim, heads, head_dim
MAX_VOCAB = 1 << 27
MAX_EXPERTS = 4096

# What llama.cpp hard-codes for llama4.
CHUNK = 8192
NOPE_INTERVAL = 4
TEMPERATURE = Temperature(floor=8192, scale=0.1)
COUNT_WITHOUT_QK_NORM = 128  # experts: that is Maverick

# Keys that change nothing about the computation, and why.
_HARMLESS = {
    "tensor_data_layout": "says that q and k rows are interleaved, which architecture `llama` implies",
    "rope.scaling.finetuned": "whether the scaling was trained in; it is applied either way",
}

# Keys that change the computation unless they have one of these values.
_NEUTRAL: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("expert_group_count", (0, 1), "experts in groups"),
    ("expert_group_used_count", (0, 1), "experts in groups"),
    ("expert_weights_scale", (0.0, 1.0), "scaled experts"),
    ("leading_dense_block_count", (0,), "first layers without experts"),
    ("moe_every_n_layers", (0,), "experts in some layers only, as another architecture has them"),
    ("use_parallel_residual", (False,), "attention and feed-forward side by side"),
    ("attention.causal", (True,), "attention that sees the future"),
    ("attention.clamp_kqv", (0.0,), "clamped activations"),
    ("attention.max_alibi_bias", (0.0,), "ALiBi positions"),
    ("attn_logit_softcapping", (0.0,), "capped attention logits"),
    ("final_logit_softcapping", (0.0,), "capped logits"),
    ("logit_scale", (0.0, 1.0), "scaled logits"),
    ("residual_scale", (0.0, 1.0), "scaled residuals"),
    ("embedding_scale", (0.0, 1.0), "scaled embeddings"),
    ("pooling_type", (0,), "an embedding model that pools its outputs"),
    ("rope.scaling.yarn_log_multiplier", (0.0,), "a YaRN variant of another architecture"),
    ("rope.scaling.yarn_ext_factor", (-1.0, 1.0), "a partial YaRN extrapolation"),
    ("rope.scaling.yarn_attn_factor", (-1.0, 1.0), "a changed YaRN attention factor"),
)


def check_architecture(where: str, metadata: Mapping[str, Any]) -> str:
    """general.architecture, if it is one we run. Raises UnsupportedModel otherwise, naming what is supported."""
    general = Fields(where, metadata, "general.")
    kind = general.text("type", "model")
    architecture = general.text("architecture")
    if architecture == "clip" or kind == "mmproj":
        raise UnsupportedModel(
            f"{where} is an image encoder without its language model (architecture {short(architecture)}): give the "
            "language model's GGUF for text, or for images the Hugging Face directory of the model"
        )
    if kind != "model":
        raise UnsupportedModel(f"{where} is a GGUF of type {short(kind)}, not a model: give the model it belongs to")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{where} has architecture {short(architecture)}, which is not supported; supported are llama (Llama 1 to "
            "3, Mistral 7B, Mixtral, SmolLM2 and others of that shape) and llama4"
        )
    return str(architecture)


def config_from_gguf(
    where: str,
    metadata: Mapping[str, Any],
    *,
    embedding_rows: int,
    roles: Set[Role],
    factors: Mapping[str, tuple[float, ...]],
) -> ModelConfig:
    """The model's shape, for which GGUF needs the tensors too: whether the head is tied and whether there are biases is
    said only by the roles they have, and the vocabulary's size perhaps only by the embedding's rows.

    factors: the values of those `rope_freqs` and `rope_factors_*` tensors that the file has.
    Raises ModelFileError, UnsupportedModel.
    """
    architecture = check_architecture(where, metadata)
    general = Fields(where, metadata, "general.")
    if general.integer("quantization_version", 2, low=0) != 2 and general.get("file_type") not in (None, 0, 1, 32):
        raise UnsupportedModel(
            f"{where}: general.quantization_version is {general.get('quantization_version')}; supported is 2: "
            "quantize the model again with a current tool"
        )
    keys = Fields(where, metadata, architecture + ".")
    for key, values, meaning in _NEUTRAL:
        keys.neutral(key, values, meaning)
    for key in _HARMLESS:
        keys.get(key)

    layers = keys.integer("block_count", high=MAX_LAYERS)
    dim = keys.integer("embedding_length", high=MAX_WIDTH)
    heads = keys.uniform("attention.head_count", high=MAX_WIDTH)
    kv_heads = keys.uniform("attention.head_count_kv", heads, high=MAX_WIDTH)
    if keys.get("attention.key_length") is None and dim % heads:
        raise ModelFileError(f"{where}: embedding_length {dim} is not a multiple of head_count {heads}: damaged file")
    head_dim = keys.integer("attention.key_length", dim // heads, high=MAX_WIDTH)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        value_length = keys.get("attention.value_length")
        raise UnsupportedModel(f"{where}: attention.value_length {value_length} differs from key_length {head_dim}")
    if keys.integer("rope.dimension_count", head_dim) != head_dim:
        rotated = keys.get("rope.dimension_count")
        raise UnsupportedModel(f"{where}: RoPE over {rotated} of {head_dim} dimensions of a head is not supported")
    if keys.get("attention.scale") not in (None, 0.0):  # 0 means unset
        scale = keys.number("attention.scale")
        if not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5):
            raise UnsupportedModel(f"{where}: attention.scale = {scale:g} is not supported (1 / sqrt({head_dim}) is)")
    context = keys.integer("context_length")
    ffn_dim = keys.uniform("feed_forward_length", high=MAX_WIDTH)
    if architecture == "llama4":
        experts, plan = _llama4(keys, layers)
    else:
        experts, plan = _mixtral(keys, ffn_dim), (LayerPlan(window=_window(keys)),) * layers
        if experts is not None:
            plan = tuple(replace(layer, experts=True) for layer in plan)
    config = ModelConfig(
        architecture=architecture,
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab=_vocabulary(keys, metadata, embedding_rows),
        context=context,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(keys, context, factors),
        plan=plan,
        tied=Role.HEAD not in roles,
        attention_bias=bool(roles & ATTENTION_BIASES),
        mlp_bias=bool(roles & MLP_BIASES),
        name=general.text("name", ""),
        licence=general.text("license", ""),
        experts=experts,
        temperature=TEMPERATURE if any(layer.temperature for layer in plan) else None,
    )
    unknown = keys.unread()
    if unknown:
        raise UnsupportedModel(
            f"{where}: {short(keys.prefix + unknown[0])} = {short(keys.get(unknown[0]))} is not known here and may "
            "change the computation: a newer version of herder may know it"
        )
    return config


def _window(keys: Fields) -> int | None:
    """The sliding window, 0 meaning none."""
    keys.neutral("attention.sliding_window_pattern", (), "a sliding window in some layers only")
    return keys.integer("attention.sliding_window", 0, low=0) or None


def _mixtral(keys: Fields, ffn_dim: int) -> Experts | None:
    """The experts of a llama: in every layer, chosen as in Mixtral."""
    count = keys.integer("expert_count", 0, low=0, high=MAX_EXPERTS)
    expert_dim = keys.integer("expert_feed_forward_length", ffn_dim, low=0, high=MAX_WIDTH) or ffn_dim
    keys.neutral("expert_gating_func", (0, 1), "experts not chosen by softmax")
    keys.neutral("expert_weights_norm", (True,), "experts' weights that do not sum to 1")
    keys.neutral("expert_shared_count", (0,), "shared experts")
    keys.neutral("interleave_moe_layer_step", (0, 1), "experts in some layers only")
    active = keys.integer("expert_used_count", 0, low=0, high=MAX_EXPERTS)
    if count == 0:
        return None
    if active == 0:
        raise ModelFileError(f"{keys.where}: {keys.prefix}expert_used_count is missing or 0, with {count} experts")
    return Experts(count, active, expert_dim, "softmax")


def _llama4(keys: Fields, layers: int) -> tuple[Experts | None, tuple[LayerPlan, ...]]:
    """Chunks of 8192 and every fourth layer without RoPE, unless sliding_window is there and 0: then every layer has
    RoPE and sees everything, as the converter means it. QK norm unless there are 128 experts."""
    count = keys.integer("expert_count", 0, low=0, high=MAX_EXPERTS)
    active = keys.integer("expert_used_count", 1, low=0, high=MAX_EXPERTS)
    expert_dim = keys.integer("expert_feed_forward_length", high=MAX_WIDTH)
    step = keys.integer("interleave_moe_layer_step", low=0, high=MAX_LAYERS)
    shared_dim = keys.integer("expert_shared_feed_forward_length", expert_dim, high=MAX_WIDTH)
    keys.neutral("expert_gating_func", (0, 2), "experts not chosen by sigmoid")
    keys.neutral("expert_weights_norm", (False,), "experts' weights made to sum to 1")
    keys.neutral("expert_shared_count", (1,), "other than one shared expert")
    keys.neutral("attention.sliding_window", (0, CHUNK), f"llama.cpp takes chunks of {CHUNK} whatever it says")
    keys.neutral("attention.chunk_size", (CHUNK,), f"llama.cpp takes chunks of {CHUNK} whatever it says")
    keys.neutral("rope.freq_base_swa", (keys.get("rope.freq_base"),), "another RoPE in layers of bounded reach")
    chunked = keys.get("attention.sliding_window") != 0
    keys.neutral("attention.sliding_window_pattern", (NOPE_INTERVAL,), "another order of layers")
    if count and not active:
        raise ModelFileError(f"{keys.where}: {keys.prefix}expert_used_count is 0, with {count} experts")
    plan = []
    for i in range(layers):
        rope = not chunked or (i + 1) % NOPE_INTERVAL != 0
        moe = count > 0 and step > 0 and (i + 1) % step == 0
        qk_norm = rope and count != COUNT_WITHOUT_QK_NORM
        plan.append(LayerPlan(rope, None, CHUNK if chunked and rope else None, qk_norm, not rope, moe))
    experts = Experts(count, active, expert_dim, "sigmoid", shared_dim) if any(p.experts for p in plan) else None
    return experts, tuple(plan)


def _vocabulary(keys: Fields, metadata: Mapping[str, Any], rows: int) -> int:
    """Rows of the embedding. The `vocab_size` key may be missing but must agree, and every token must have a row."""
    vocab: int = keys.integer("vocab_size", rows, high=MAX_VOCAB)
    if rows and vocab != rows:
        raise ModelFileError(
            f"{keys.where}: vocab_size is {vocab}, but token_embd.weight has {rows} rows: damaged file"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, StringArray) and rows and len(tokens) > rows:
        raise ModelFileError(
            f"{keys.where}: tokenizer.ggml.tokens has {len(tokens)} entries, but token_embd.weight has {rows} rows"
        )
    return vocab


def _rope(keys: Fields, context: int, factors: Mapping[str, tuple[float, ...]]) -> Rope:
    """llama.cpp's reading of the keys: a factor without a type is linear; attn_factor multiplies YaRN's own factor."""
    theta = keys.number("rope.freq_base", 10000.0, low=1.0)
    linear = keys.number("rope.scale_linear", None)  # older name of rope.scaling.factor
    factor = keys.number("rope.scaling.factor", linear or 1.0)
    kind = keys.text("rope.scaling.type", "linear" if factor != 1.0 else "none")
    original = keys.integer("rope.scaling.original_context_length", None)
    attention = keys.number("rope.scaling.attn_factor", None)
    beta_fast = keys.number("rope.scaling.yarn_beta_fast", 32.0)
    beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1.0)
    if kind == "longrope":
        for name in ("rope_factors_short.weight", "rope_factors_long.weight"):
            if name not in factors:
                raise ModelFileError(f"{keys.where}: rope.scaling.type is longrope, but tensor {name} is missing")
        return Rope(
            theta, "longrope", factor, original or context, attention_factor=attention or 1.0,
            factors=factors["rope_factors_short.weight"], long_factors=factors["rope_factors_long.weight"],
        )  # fmt: skip
    divisors = factors.get("rope_freqs.weight")
    if kind == "none":
        return Rope(theta, factors=divisors)
    if kind == "linear":
        return Rope(theta, "linear", factor, factors=divisors)
    if kind == "yarn":
        if attention is not None and factor > 1:
            attention *= 0.1 * math.log(factor) + 1.0
        return Rope(
            theta, "yarn", factor, original or context, beta_fast=beta_fast, beta_slow=beta_slow,
            attention_factor=attention, factors=divisors,
        )  # fmt: skip
    raise UnsupportedModel(
        f"{keys.where}: {keys.prefix}rope.scaling.type is {short(kind)}; supported are none, linear, yarn, longrope"
    )
