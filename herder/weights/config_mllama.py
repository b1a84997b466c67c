"""Hugging Face config.json -> ModelConfig for Llama 3.2 Vision (Mllama): the text model and its image encoder.

Keys as in transformers' MllamaConfig, MllamaTextConfig and MllamaVisionConfig.
"""

from __future__ import annotations

from dataclasses import replace

from herder.core.config import LayerPlan, MllamaVision, ModelConfig
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import Fields, short
from herder.weights.keys_hf import (
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
    common_keys,
    image_token,
    indices,
    nested,
    read_rope,
    refuse_unknown,
    side,
)
from herder.weights.vision_tensors import aspect_ratios

IMAGE_ROWS = 8  # rows of the embedding beyond the vocabulary: what the text may not contain, the image token first
MAX_TILES = 64


def mllama(keys: Fields, name: str, licence: str) -> ModelConfig:
    """model_type mllama: text_config and vision_config, and the id of the image token."""
    common_keys(keys)
    text = nested(keys, "text_config")
    text.neutral("model_type", ("mllama_text_model",), "another text model")
    config = mllama_text(text, name, licence)
    keys.neutral("tie_word_embeddings", (False,), "a tied head")
    vision = _vision(nested(keys, "vision_config"))
    token = image_token(keys, config.vocab + IMAGE_ROWS - 1)
    refuse_unknown(keys)
    return replace(config, architecture="mllama", vision=vision, image_token=token)


def mllama_text(keys: Fields, name: str, licence: str) -> ModelConfig:
    """model_type mllama_text_model, by itself or as text_config."""
    common_keys(keys)
    layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    dim = keys.integer("hidden_size", high=MAX_WIDTH)
    heads = keys.integer("num_attention_heads", high=MAX_WIDTH)
    if dim % heads:
        raise ModelFileError(f"{keys.where}: hidden_size {dim} is not a multiple of num_attention_heads {heads}")
    keys.neutral("head_dim", (dim // heads,), "transformers takes hidden_size / num_attention_heads")
    keys.neutral("tie_word_embeddings", (False,), "a tied head, which has fewer rows than the embedding")
    cross = indices(keys, "cross_attention_layers", layers)
    if cross is None:
        raise ModelFileError(f"{keys.where}: {keys.prefix}cross_attention_layers is missing: get the file again")
    context = keys.integer("max_position_embeddings")
    vocab = keys.integer("vocab_size", high=MAX_VOCAB)
    config = ModelConfig(
        architecture="mllama_text_model",
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads", high=MAX_WIDTH),
        head_dim=dim // heads,
        ffn_dim=keys.integer("intermediate_size", high=MAX_WIDTH),
        vocab=vocab,
        context=context,
        norm_eps=keys.number("rms_norm_eps"),
        rope=read_rope(keys, context, 5e5),
        plan=tuple(LayerPlan(rope=False, cross=True) if i in cross else LayerPlan() for i in range(layers)),
        name=name,
        licence=licence,
        embedding_rows=vocab + IMAGE_ROWS,
    )
    for key in ("attention_bias", "mlp_bias"):
        keys.neutral(key, (False,), "Llama 3.2 Vision has no such biases")
    refuse_unknown(keys)
    return config


def _vision(keys: Fields) -> MllamaVision:
    common_keys(keys, ("gelu",), "only exact GELU")
    keys.neutral("model_type", ("mllama_vision_model",), "another image encoder")
    keys.neutral("num_channels", (3,), "images that are not RGB")
    keys.neutral("norm_eps", (1e-5,), "transformers ignores it in two of the norms and takes 1e-05 there")
    layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    taps = indices(keys, "intermediate_layers_indices", layers)
    if taps is None:
        raise ModelFileError(f"{keys.where}: {keys.prefix}intermediate_layers_indices is missing: get the file again")
    heads = keys.integer("attention_heads", keys.integer("num_attention_heads", None, high=MAX_WIDTH), high=MAX_WIDTH)
    if heads is None:
        raise keys.wrong("attention_heads", None, "expected a whole number")
    vision = MllamaVision(
        dim=keys.integer("hidden_size", high=MAX_WIDTH),
        layers=layers,
        global_layers=keys.integer("num_global_layers", high=MAX_LAYERS),
        heads=heads,
        ffn_dim=keys.integer("intermediate_size", high=MAX_WIDTH),
        patch=side(keys, "patch_size"),
        tile=side(keys, "image_size"),
        max_tiles=keys.integer("max_num_tiles", high=MAX_TILES),
        taps=taps,
    )
    if vision.tile % vision.patch or vision.dim % vision.heads:
        raise ModelFileError(
            f"{keys.where}: {keys.prefix}image_size {vision.tile} is not a multiple of patch_size {vision.patch}, or "
            f"hidden_size {vision.dim} not one of attention_heads {vision.heads}"
        )
    wide = vision.dim * (1 + len(taps))
    if keys.integer("vision_output_dim", wide) != wide:
        raise ModelFileError(
            f"{keys.where}: {keys.prefix}vision_output_dim is {keys.get('vision_output_dim')}, but hidden_size "
            f"{vision.dim} and {len(taps)} intermediate layers make {wide}"
        )
    ratios = keys.get("supported_aspect_ratios")
    if ratios is not None and ratios != aspect_ratios(vision.max_tiles):
        raise UnsupportedModel(
            f"{keys.where}: {keys.prefix}supported_aspect_ratios is {short(ratios)}; supported are all canvases of up "
            f"to {vision.max_tiles} tiles, in their usual order"
        )
    refuse_unknown(keys)
    return vision
