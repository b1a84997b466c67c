"""Meta's params.json -> ModelConfig, for LLaMA 1 to Llama 4, 3.2 Vision, Code Llama and Llama Guard.

Keys as in llama_models' `llama3/args.py` and `llama4/args.py`. Every key is honoured, known to change nothing about the
forward pass, or refused by name. What the file does not say, and what is taken instead:

- rope_theta: 10000, as LLaMA 1 and 2 were trained (`ModelArgs`' default of 500000 is Llama 3's).
- vocab_size, absent or -1: the rows of the embedding.
- the factor of `use_scaled_rope`: 32 for the widths of Llama 3.2 1B and 3B, 8 otherwise, 16 for Llama 4 (and there a
  high_freq_factor of 1). Meta's `llama3/model.py` has 8 for all; the models were trained with 32.
- attn_temperature_tuning: on where a Llama 4 has layers without RoPE, as every released one was made to run.
- the image encoder of 3.2 Vision: the constants of Meta's `llama3/multimodal/model.py`.
- the context: that of the generation the other keys show (see _context).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from herder.core.config import Experts, LayerPlan, Llama4Vision, MllamaVision, ModelConfig, Rope, Temperature
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import Fields, short

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24  # dim, ffn_dim, heads, head_dim
MAX_VOCAB = 1 << 27

# What llama3/multimodal/model.py builds whatever params.json says; tile and max_tiles are the file's.
MLLAMA_VISION = MllamaVision(
    dim=1280, layers=32, global_layers=8, heads=16, ffn_dim=5120, patch=14, tile=560, max_tiles=4,
    taps=(3, 7, 15, 23, 30),
)  # fmt: skip
LEARNABLE_ROWS = 8  # text_model.learnable_embedding, which follows the vocabulary
LLAMA4_PATCH_TOKEN = 200092

# How the reference code runs and was trained, not what it computes.
_HARMLESS = ("max_batch_size", "max_seq_len", "model_parallel_size")


def config_from_meta(
    where: str, values: Mapping[str, Any], *, vocab: int, tied: bool, name: str = "", licence: str = ""
) -> ModelConfig:
    """The model's shape. where names params.json in errors; vocab: rows of the embedding; tied: the files have no other
    output matrix than the embedding. Raises ModelFileError, UnsupportedModel."""
    keys = Fields(where, _unwrapped(where, values))
    for key in _HARMLESS:
        keys.get(key)
    four = any(keys.get(key) is not None for key in ("moe_args", "vision_args", "ffn_exp", "nope_layer_interval"))
    layers = keys.integer("n_layers", high=MAX_LAYERS)
    dim = keys.integer("dim", high=MAX_WIDTH)
    heads = keys.integer("n_heads", high=MAX_WIDTH)
    if dim % heads:
        raise ModelFileError(f"{where}: dim {dim} is not a multiple of n_heads {heads}")
    head_dim = keys.integer("head_dim", dim // heads, high=MAX_WIDTH)
    if head_dim != dim // heads:
        raise UnsupportedModel(f"{where}: head_dim is {head_dim}; only dim / n_heads = {dim // heads} is supported")
    given = keys.integer("vocab_size", None, low=-1, high=MAX_VOCAB)
    if given not in (None, -1, vocab):
        raise ModelFileError(f"{where}: vocab_size is {given}, but the embedding has {vocab} rows")
    rope = _rope(keys, dim, four)
    config = ModelConfig(
        architecture="llama4" if four else "llama",
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=keys.integer("n_kv_heads", heads, high=MAX_WIDTH),
        head_dim=head_dim,
        ffn_dim=_ffn_dim(keys, dim),
        vocab=vocab,
        context=1,
        norm_eps=keys.number("norm_eps"),
        rope=rope,
        plan=(LayerPlan(),) * layers,
        tied=tied,
        name=name,
        licence=licence,
    )
    config = _llama4(keys, config) if four else _mllama(keys, config)
    quantized = keys.get("quantization_args") is not None  # read with lora_args by quantized_meta.py
    keys.get("lora_args")
    if unknown := keys.unread():
        raise UnsupportedModel(
            f"{where}: {short(unknown[0])} = {short(keys.get(unknown[0]))} is not known here and may change the "
            "computation: remove the key if it does not, or use a newer version of herder"
        )
    return replace(config, context=_context(config, name, quantized))


def _unwrapped(where: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Some params.json hold everything under one key, `model`."""
    inner: Any = values.get("model")
    if inner is None:
        return values
    if not isinstance(inner, dict) or len(values) != 1:
        raise ModelFileError(f"{where}: model is {short(inner)}: expected all parameters under it, or no such key")
    return inner


def _ffn_dim(keys: Fields, dim: int) -> int:
    """Meta's rule: two thirds of 4 * dim, times the multiplier, rounded down each time, up to the multiple at last."""
    return _rounded(keys, 4 * dim, 1.0)


def _rounded(keys: Fields, hidden: int, divisor: float) -> int:
    multiplier = keys.number("ffn_dim_multiplier", None)
    multiple = keys.integer("multiple_of", 256, high=MAX_WIDTH)
    hidden = int(2 * hidden / 3)
    if multiplier is not None:
        hidden = int(min(multiplier, float(MAX_WIDTH)) * hidden)
    if divisor != 1.0:
        hidden = int(hidden / divisor)
    return min(max(1, -(-hidden // int(multiple))) * int(multiple), 1 << 40)  # whatever it is, the tensors must agree


def _rope(keys: Fields, dim: int, four: bool) -> Rope:
    theta = keys.number("rope_theta", 5e5 if four else 1e4, low=1.0)
    factor = keys.number("rope_scaling_factor", None)
    high = keys.number("rope_high_freq_factor", None)
    if not keys.flag("use_scaled_rope", False):
        return Rope(theta)
    if factor is None:
        factor = 16.0 if four else 32.0 if dim in (2048, 3072) else 8.0
    if high is None:
        high = 1.0 if four else 4.0
    if high < 1.0:
        raise ModelFileError(f"{keys.where}: rope_high_freq_factor is {high:g}: must be 1 or more")
    return Rope(theta, "llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=high)


def _mllama(keys: Fields, config: ModelConfig) -> ModelConfig:
    """Llama 3.2 Vision, or the configuration as it is: -1 (and absence) is how Meta's files say "no vision".

    Cross-attention layers are spread evenly from the last layer down, each before a self-attention layer
    (`_init_fusion_schedule`); here the two kinds are counted together, as in Hugging Face's models.
    """
    tile = keys.integer("vision_chunk_size", -1, low=-1, high=1 << 14)
    tiles = keys.integer("vision_max_num_chunks", 4, low=-1, high=64)
    crosses = keys.integer("vision_num_cross_attention_layers", -1, low=-1, high=MAX_LAYERS)
    if tile <= 0 and crosses <= 0:
        return config
    if tile <= 0 or not 0 < crosses <= config.layers or tiles != MLLAMA_VISION.max_tiles:
        raise ModelFileError(
            f"{keys.where}: vision_chunk_size {tile}, vision_max_num_chunks {tiles} and "
            f"vision_num_cross_attention_layers {crosses} do not describe an image encoder: get the file again"
        )
    before = set(cross_layers(config.layers, crosses))
    plan: list[LayerPlan] = []
    for layer in range(config.layers):
        plan += [LayerPlan(rope=False, cross=True)] * (layer in before) + [LayerPlan()]
    return replace(
        config,
        architecture="mllama",
        layers=len(plan),
        plan=tuple(plan),
        vision=replace(MLLAMA_VISION, tile=tile, max_tiles=tiles),
        embedding_rows=config.vocab + LEARNABLE_ROWS,
        image_token=config.vocab,  # the first of the learnable rows
    )


def cross_layers(layers: int, crosses: int) -> list[int]:
    """The self-attention layers, counted alone, that a cross-attention layer precedes."""
    step = math.ceil(layers / crosses)
    return list(range(layers))[::-1][::step][:crosses][::-1]


def _llama4(keys: Fields, config: ModelConfig) -> ModelConfig:
    interval = keys.integer("nope_layer_interval", None, high=MAX_LAYERS)
    chunk = keys.integer("attention_chunk_size", None)
    qk_norm = keys.flag("use_qk_norm", False)
    tuned = keys.flag("attn_temperature_tuning", interval is not None)
    floor, scale = keys.number("floor_scale", 8192.0), keys.number("attn_scale", 0.1)
    if floor != int(floor) or floor > 1 << 30:
        raise UnsupportedModel(f"{keys.where}: floor_scale is {floor:g}: only whole numbers are supported")
    experts, step = _experts(keys, config)
    plan = []
    for layer in range(config.layers):
        rope = interval is None or (layer + 1) % interval != 0
        plan.append(
            LayerPlan(
                rope=rope,
                chunk=chunk if rope else None,
                qk_norm=qk_norm and rope,
                temperature=tuned and not rope,
                experts=experts is not None and (layer + 1) % step == 0,
            )
        )
    vision = _llama4_vision(keys)
    return replace(
        config,
        plan=tuple(plan),
        experts=experts,
        temperature=Temperature(int(floor), scale) if tuned else None,
        vision=vision,
        image_token=LLAMA4_PATCH_TOKEN if vision is not None and config.vocab > LLAMA4_PATCH_TOKEN else None,
    )


def _experts(keys: Fields, config: ModelConfig) -> tuple[Experts | None, int]:
    """The mixture of experts and every which layer has it."""
    expansion = keys.number("ffn_exp", 4.0)
    moe = _nested(keys, "moe_args")
    if moe is None:
        return None, 1
    capacity = moe.number("capacity_factor", 1.0)  # of the training's router; below, it only sets a width
    divisor = capacity + 1 if moe.flag("auto_scale_F", True) else 1.0
    width = _rounded(keys, int(min(expansion, float(MAX_WIDTH)) * config.dim), divisor)
    count, active = moe.integer("num_experts", high=1 << 16), moe.integer("top_k", 1, high=1 << 16)
    step = moe.integer("interleave_moe_layer_step", 1, high=MAX_LAYERS)
    _all_read(moe)
    return Experts(count, active, width, "sigmoid", width), step


def _llama4_vision(keys: Fields) -> Llama4Vision | None:
    vision = _nested(keys, "vision_args")
    if vision is None:
        return None
    tile, patch = _side(vision, "image_size"), _side(vision, "patch_size")
    dim, heads = vision.integer("dim", high=MAX_WIDTH), vision.integer("n_heads", high=MAX_WIDTH)
    ratio, shuffle = vision.number("mlp_ratio"), vision.number("pixel_shuffle_ratio")
    layers, output = vision.integer("n_layers", high=MAX_LAYERS), vision.integer("output_dim", high=MAX_WIDTH)
    _all_read(vision)
    if tile % patch or dim % heads or shuffle > 1 or ratio > 64:
        raise ModelFileError(
            f"{keys.where}: vision_args has image_size {tile}, patch_size {patch}, dim {dim}, n_heads {heads}, "
            f"mlp_ratio {ratio:g} and pixel_shuffle_ratio {shuffle:g}, which do not go together"
        )
    return Llama4Vision(
        dim=dim, layers=layers, heads=heads, ffn_dim=int(ratio * dim), patch=patch, tile=tile, projector_dim=output,
        output_dim=output, shuffle=shuffle,
    )  # fmt: skip


def _side(vision: Fields, key: str) -> int:
    """{"height": n, "width": n}: pixels."""
    size = _nested(vision, key)
    if size is None:
        raise ModelFileError(f"{vision.where}: {vision.prefix}{key} is missing: the file is incomplete, get it again")
    height, width = size.integer("height", high=1 << 14), size.integer("width", high=1 << 14)
    _all_read(size)
    if height != width:
        raise UnsupportedModel(
            f"{vision.where}: {vision.prefix}{key} is {height} x {width}; only squares are supported"
        )
    return int(height)


def _nested(keys: Fields, key: str) -> Fields | None:
    value = keys.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise keys.wrong(key, value, "expected an object or null")
    prefix = f"{keys.prefix}{key}."
    return Fields(keys.where, {prefix + name: inner for name, inner in value.items()}, prefix)


def _all_read(keys: Fields) -> None:
    if unknown := keys.unread():
        raise UnsupportedModel(
            f"{keys.where}: {short(keys.prefix + unknown[0])} = {short(keys.get(unknown[0]))} is not known here and "
            "may change the computation: use a newer version of herder"
        )


def _context(config: ModelConfig, name: str, quantized: bool) -> int:
    """What the generation was made for; no params.json says it. LLaMA 1 and 2 of 7B and 13B differ in nothing but
    norm_eps, and some Llama 2 chat models not even there: the name of their directory may say `llama-2`."""
    if config.architecture == "llama4":
        scout, maverick = config.rope.kind == "llama3", config.experts is not None
        return 10 << 20 if scout else 1 << 20 if maverick else 131072
    if config.rope.kind == "llama3":
        return 8192 if quantized else 131072
    if config.rope.theta >= 1e6:  # Code Llama
        return 16384
    if config.rope.theta >= 5e5:  # Llama 3.0
        return 8192
    old = config.norm_eps == 1e-6 or config.dim == 6656 or (config.dim, config.kv_heads) == (8192, 64)
    return 2048 if old and not any(word in name.lower() for word in ("llama-2", "llama2")) else 4096
