"""Which tensors an image encoder and its projector have, and in which shapes: Hugging Face's hub names.

Sources: transformers' `modeling_mllama.py` and `modeling_llama4.py`.
"""

from __future__ import annotations

from herder.core.config import Llama4Vision, MllamaVision, ModelConfig

CHANNELS = 3
PREFIXES = ("vision_model.", "multi_modal_projector.")
Shape = tuple[int, ...]


def vision_shapes(config: ModelConfig) -> dict[str, Shape]:
    """canonical name -> shape, as the file has it; empty for a model without vision."""
    if isinstance(config.vision, MllamaVision):
        return _mllama(config.vision, config.dim)
    if isinstance(config.vision, Llama4Vision):
        return _llama4(config.vision, config.dim)
    return {}


def aspect_ratios(max_tiles: int) -> list[list[int]]:
    """[rows, columns] of every canvas of at most `max_tiles` tiles, in the order of Mllama's aspect ratio ids, which
    count from 1 (0 is padding)."""
    sides = range(1, max_tiles + 1)
    return [[rows, columns] for rows in sides for columns in sides if rows * columns <= max_tiles]


def _mllama(vision: MllamaVision, text_dim: int) -> dict[str, Shape]:
    dim, patches, ids = vision.dim, (vision.tile // vision.patch) ** 2 + 1, len(aspect_ratios(vision.max_tiles)) + 1
    shapes: dict[str, Shape] = {
        "vision_model.class_embedding": (dim,),
        "vision_model.patch_embedding.weight": (dim, CHANNELS, vision.patch, vision.patch),
        "vision_model.gated_positional_embedding.embedding": (patches, dim),
        "vision_model.gated_positional_embedding.gate": (1,),
        "vision_model.gated_positional_embedding.tile_embedding.weight": (ids, vision.max_tiles * patches * dim),
        "multi_modal_projector.weight": (text_dim, dim * (1 + len(vision.taps))),
        "multi_modal_projector.bias": (text_dim,),
    }
    for place in ("pre", "post"):
        name = f"vision_model.{place}_tile_positional_embedding"
        shapes |= {f"{name}.embedding.weight": (ids, vision.max_tiles * dim), f"{name}.gate": (1,)}
        shapes |= _norm(f"vision_model.layernorm_{place}", dim)
    for encoder, layers in (("transformer", vision.layers), ("global_transformer", vision.global_layers)):
        for layer in range(layers):
            at = f"vision_model.{encoder}.layers.{layer}"
            shapes |= _block(at, dim, vision.ffn_dim, attention_bias=False)
            if encoder == "global_transformer":
                shapes |= {f"{at}.gate_attn": (1,), f"{at}.gate_ffn": (1,)}
    return shapes


def _llama4(vision: Llama4Vision, text_dim: int) -> dict[str, Shape]:
    dim, tokens = vision.dim, (vision.tile // vision.patch) ** 2 + 1
    shuffled = round(dim / vision.shuffle**2)
    shapes: dict[str, Shape] = {
        "vision_model.class_embedding": (dim,),
        "vision_model.positional_embedding_vlm": (tokens, dim),
        "vision_model.patch_embedding.linear.weight": (dim, CHANNELS * vision.patch**2),
        "vision_model.vision_adapter.mlp.fc1.weight": (vision.projector_dim, shuffled),
        "vision_model.vision_adapter.mlp.fc2.weight": (vision.output_dim, vision.projector_dim),
        "multi_modal_projector.linear_1.weight": (text_dim, vision.output_dim),
        **_norm("vision_model.layernorm_pre", dim),
        **_norm("vision_model.layernorm_post", dim),
    }
    for layer in range(vision.layers):
        shapes |= _block(f"vision_model.model.layers.{layer}", dim, vision.ffn_dim, attention_bias=True)
    return shapes


def _block(at: str, dim: int, ffn_dim: int, attention_bias: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {**_norm(f"{at}.input_layernorm", dim), **_norm(f"{at}.post_attention_layernorm", dim)}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        shapes[f"{at}.self_attn.{name}.weight"] = (dim, dim)
        if attention_bias:
            shapes[f"{at}.self_attn.{name}.bias"] = (dim,)
    shapes |= {f"{at}.mlp.fc1.weight": (ffn_dim, dim), f"{at}.mlp.fc1.bias": (ffn_dim,)}
    shapes |= {f"{at}.mlp.fc2.weight": (dim, ffn_dim), f"{at}.mlp.fc2.bias": (dim,)}
    return shapes


def _norm(name: str, dim: int) -> dict[str, Shape]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
