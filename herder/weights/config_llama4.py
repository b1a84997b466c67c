"""Hugging Face config.json -> ModelConfig for Llama 4: the text model and its image encoder.

Keys as in transformers' Llama4Config, Llama4TextConfig and Llama4VisionConfig. Where a key that decides the computation
is absent, transformers' default holds, which is Scout's.
"""

from __future__ import annotations

from dataclasses import replace

from herder.core.config import Experts, LayerPlan, Llama4Vision, ModelConfig, Temperature
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import Fields, short
from herder.weights.keys_hf import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
    common_keys,
    flags,
    image_token,
    indices,
    nested,
    read_rope,
    refuse_unknown,
    side,
)

NOPE_INTERVAL = 4
CHUNK = 8192
FLOOR, SCALE = 8192, 0.1
_TYPES = ("chunked_attention", "full_attention")


def llama4(keys: Fields, name: str, licence: str) -> ModelConfig:
    """model_type llama4: text_config and vision_config, and the ids of the image tokens."""
    common_keys(keys)
    text = nested(keys, "text_config")
    text.neutral("model_type", ("llama4_text",), "another text model")
    config = llama4_text(text, name, licence)
    keys.neutral("tie_word_embeddings", (config.tied,), "text_config says otherwise")
    vision = _vision(nested(keys, "vision_config"))
    high = config.vocab - 1
    for key in ("boi_token_index", "eoi_token_index"):  # the prompt's, which the chat format writes
        keys.integer(key, None, low=0, high=high)
    token = image_token(keys, high)
    refuse_unknown(keys)
    return replace(config, architecture="llama4", vision=vision, image_token=token)


def llama4_text(keys: Fields, name: str, licence: str) -> ModelConfig:
    """model_type llama4_text, by itself or as text_config."""
    common_keys(keys)
    layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    dim = keys.integer("hidden_size", high=MAX_WIDTH)
    heads = keys.integer("num_attention_heads", high=MAX_WIDTH)
    if keys.get("head_dim") is None and dim % heads:
        raise ModelFileError(f"{keys.where}: hidden_size {dim} is not a multiple of num_attention_heads {heads}")
    context = keys.integer("max_position_embeddings")
    ffn_dim = keys.integer("intermediate_size_mlp", high=MAX_WIDTH)
    expert_dim = keys.integer("intermediate_size", high=MAX_WIDTH)
    with_experts = _moe_layers(keys, layers)
    count = keys.integer("num_local_experts", 0, low=0, high=MAX_EXPERTS)
    active = keys.integer("num_experts_per_tok", 1, low=0, high=MAX_EXPERTS)
    if with_experts and not (count and active):
        raise ModelFileError(
            f"{keys.where}: layer {min(with_experts)} is one of experts, but {keys.prefix}num_local_experts is {count} "
            f"and num_experts_per_tok {active}: write moe_layers [] for a model without experts"
        )
    plan = _plan(keys, layers, with_experts)
    tuned = any(layer.temperature for layer in plan)
    temperature = Temperature(keys.integer("floor_scale", FLOOR), keys.number("attn_scale", SCALE))
    config = ModelConfig(
        architecture="llama4_text",
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads", heads, high=MAX_WIDTH),
        head_dim=keys.integer("head_dim", dim // heads, high=MAX_WIDTH),
        ffn_dim=ffn_dim,
        vocab=keys.integer("vocab_size", high=MAX_VOCAB),
        context=context,
        norm_eps=keys.number("rms_norm_eps"),
        rope=read_rope(keys, context, 5e5),
        plan=plan,
        tied=keys.flag("tie_word_embeddings", False),
        attention_bias=keys.flag("attention_bias", False),
        name=name,
        licence=licence,
        experts=Experts(count, active, expert_dim, "sigmoid", expert_dim) if with_experts else None,
        temperature=temperature if tuned else None,
    )
    keys.neutral("mlp_bias", (False,), "Llama 4 has no such biases")
    refuse_unknown(keys)
    return config


def _moe_layers(keys: Fields, layers: int) -> frozenset[int]:
    """moe_layers where it is there (Llama Guard 4 has none: []), else every interleave_moe_layer_step-th layer."""
    step = keys.integer("interleave_moe_layer_step", 1, low=0, high=MAX_LAYERS)
    listed = indices(keys, "moe_layers", layers)
    if listed is not None:
        return frozenset(listed)
    if step == 0:
        raise keys.wrong("interleave_moe_layer_step", step, "expected at least 1, or a list moe_layers beside it")
    return frozenset(range(step - 1, layers, step))


def _plan(keys: Fields, layers: int, with_experts: frozenset[int]) -> tuple[LayerPlan, ...]:
    """no_rope_layers (1: the layer rotates) or no_rope_layer_interval; layer_types, by default chunked attention where
    the layer rotates; no chunk size (null): full attention everywhere."""
    interval = keys.integer("no_rope_layer_interval", NOPE_INTERVAL, high=1 << 30)
    rotated = flags(keys, "no_rope_layers", layers) or tuple((i + 1) % interval != 0 for i in range(layers))
    chunk = None if keys.has("attention_chunk_size") and keys.get("attention_chunk_size") is None else CHUNK
    chunk = keys.integer("attention_chunk_size", chunk)
    types = keys.get("layer_types")
    if types is None:
        types = [_TYPES[0] if rope else _TYPES[1] for rope in rotated]
    if not isinstance(types, list) or len(types) != layers or any(t not in _TYPES for t in types):
        raise UnsupportedModel(
            f"{keys.where}: {keys.prefix}layer_types is {short(types)}; supported are {' and '.join(_TYPES)}, one for "
            f"each of {layers} layers"
        )
    qk_norm, tuned = keys.flag("use_qk_norm", True), _tuning(keys)
    return tuple(
        LayerPlan(
            rope=rope,
            chunk=chunk if types[i] == _TYPES[0] else None,
            qk_norm=qk_norm and rope,
            temperature=tuned and not rope,
            experts=i in with_experts,
        )
        for i, rope in enumerate(rotated)
    )


def _tuning(keys: Fields) -> bool:
    """attn_temperature_tuning: true or false, or in older files a number (4) that counts as true."""
    value = keys.get("attn_temperature_tuning")
    if value is None:
        return True
    if type(value) not in (bool, int) or value < 0:
        raise keys.wrong("attn_temperature_tuning", value, "expected true or false")
    return bool(value)


def _vision(keys: Fields) -> Llama4Vision:
    common_keys(keys, ("gelu",), "only exact GELU")
    keys.neutral("model_type", ("llama4_vision_model",), "another image encoder")
    keys.neutral("num_channels", (3,), "images that are not RGB")
    keys.neutral("vision_feature_layer", (-1,), "features of another layer than the last")
    keys.neutral("vision_feature_select_strategy", ("default",), "other features of an image")
    keys.neutral("multi_modal_projector_bias", (False,), "a projector with a bias, which transformers ignores")
    keys.neutral("norm_eps", (1e-5,), "transformers ignores it and takes 1e-05")
    tile, patch = side(keys, "image_size"), side(keys, "patch_size")
    dim, heads = keys.integer("hidden_size", high=MAX_WIDTH), keys.integer("num_attention_heads", high=MAX_WIDTH)
    shuffle = keys.number("pixel_shuffle_ratio", 0.5)
    rope = read_rope(keys, max(1, tile // patch) ** 2)
    if rope.kind != "default":
        raise UnsupportedModel(
            f"{keys.where}: {keys.prefix}rope_parameters is of type {rope.kind}: only default is known"
        )
    vision = Llama4Vision(
        dim=dim,
        layers=keys.integer("num_hidden_layers", high=MAX_LAYERS),
        heads=heads,
        ffn_dim=keys.integer("intermediate_size", high=MAX_WIDTH),
        patch=patch,
        tile=tile,
        projector_dim=keys.integer("projector_input_dim", high=MAX_WIDTH),
        output_dim=keys.integer("vision_output_dim", high=MAX_WIDTH),
        shuffle=shuffle,
        rope_theta=rope.theta,
    )
    grid = tile // patch * shuffle
    even = tile % patch == 0 and dim % (4 * heads) == 0 and shuffle <= 1 and grid >= 1 and grid == int(grid)
    if not even or round(dim / shuffle**2) != vision.ffn_dim:
        raise ModelFileError(
            f"{keys.where}: {keys.prefix}image_size {tile}, patch_size {patch}, hidden_size {dim}, num_attention_heads "
            f"{heads}, pixel_shuffle_ratio {shuffle:g} and intermediate_size {vision.ffn_dim} do not fit together"
        )
    for key in ("projector_input_dim", "projector_output_dim"):
        if keys.integer(key, high=MAX_WIDTH) != vision.output_dim:
            raise ModelFileError(
                f"{keys.where}: {keys.prefix}{key} is {keys.get(key)}, but vision_output_dim {vision.output_dim}: "
                "no such encoder can run"
            )
    refuse_unknown(keys)
    return vision
