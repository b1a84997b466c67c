"""Meta's tensor names: which stored tensor a canonical one comes from, which part of it, and how it is split.

Sources: the modules of llama_models (`llama3/model.py`, `llama3/multimodal/model.py`, `llama4/`), whose load hooks give
the names of the released files too, and `checkpoint.py` (reshard_mp) for the dimension along which each is split:
what a layer's outputs are made of (column parallel) along rows, what its inputs are (row parallel) along columns,
everything else is the same on each rank.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

from herder.core.config import MllamaVision, ModelConfig
from herder.weights.names import Place, Role

ROWS, COLUMNS = 0, 1


class Origin(NamedTuple):
    """name: of the stored tensor. axis: along which the ranks' pieces are joined, None when each has all of it.

    part: what of each rank's piece is meant: all of it; `q`, `k`, `v`, of the three one after another; `first` or
    `second` half of the rows; `expert`, one of as many equal runs of rows, transposed; `turned`, its transpose.
    """

    name: str
    axis: int | None
    part: str = "all"


# role: what may hold it, the name within the layer; the first that is there is used.
_LAYER: dict[Role, tuple[Origin, ...]] = {
    Role.ATTN_NORM: (Origin("attention_norm.weight", None), Origin("attention.wqkv.layer_norm_weight", None)),
    Role.WQ: (Origin("attention.wq.weight", ROWS), Origin("attention.wqkv.weight", ROWS, "q")),
    Role.WK: (Origin("attention.wk.weight", ROWS), Origin("attention.wqkv.weight", ROWS, "k")),
    Role.WV: (Origin("attention.wv.weight", ROWS), Origin("attention.wqkv.weight", ROWS, "v")),
    Role.WO: (Origin("attention.wo.weight", COLUMNS),),
    Role.FFN_NORM: (
        Origin("ffn_norm.weight", None),
        Origin("feed_forward.norm.weight", None),
        Origin("feed_forward.mlp.layer_norm_weight", None),
    ),
    Role.W_GATE: (Origin("feed_forward.w1.weight", ROWS), Origin("feed_forward.mlp.fc1_weight", ROWS, "first")),
    Role.W_UP: (Origin("feed_forward.w3.weight", ROWS), Origin("feed_forward.mlp.fc1_weight", ROWS, "second")),
    Role.W_DOWN: (Origin("feed_forward.w2.weight", COLUMNS), Origin("feed_forward.mlp.fc2_weight", COLUMNS)),
    Role.ROUTER: (Origin("feed_forward.router_DE", None, "turned"),),
    Role.EXPERT_GATE: (Origin("feed_forward.experts.moe_w_in_eD_F", ROWS, "expert"),),
    Role.EXPERT_UP: (Origin("feed_forward.experts.moe_w_swiglu_eD_F", ROWS, "expert"),),
    Role.EXPERT_DOWN: (Origin("feed_forward.experts.moe_w_out_eF_D", COLUMNS, "expert"),),
    Role.SHARED_GATE: (Origin("feed_forward.w_in_shared_FD.weight", ROWS),),
    Role.SHARED_UP: (Origin("feed_forward.w_swiglu_FD.weight", ROWS),),
    Role.SHARED_DOWN: (Origin("feed_forward.w_out_shared_DF.weight", COLUMNS),),
    Role.Q_NORM: (Origin("attention.q_norm.weight", None), Origin("attention.inner_attention.q_norm.weight", None)),
    Role.K_NORM: (Origin("attention.k_norm.weight", None), Origin("attention.inner_attention.k_norm.weight", None)),
    Role.ATTN_GATE: (Origin("gate_attn", None),),
    Role.FFN_GATE: (Origin("gate_ffwd", None),),
}

# LLaMA 1, 2 and Code Llama split the embedding by columns, Llama 3 and 4 by rows: its shape says which.
EMBEDDING = "tok_embeddings.weight"
LEARNABLE = "learnable_embedding.weight"  # of 3.2 Vision: the rows after the vocabulary's
_OUTER = {Role.FINAL_NORM: Origin("norm.weight", None), Role.HEAD: Origin("output.weight", ROWS)}

_IGNORED = re.compile(
    r"(.*\.)?rope\.freqs"  # follows from the configuration
    r"|(.*\.)?freqs_cis"
    r"|.*_extra_state"  # Transformer Engine's, which Meta's load hooks drop
    r"|layers\.\d+\.feed_forward\.(running|global)_gate_stats_3E"  # statistics of the router's training
    r"|layers\.\d+\.feed_forward\.expert_activation_DE"
)


def text_prefix(config: ModelConfig) -> str:
    """Before the name of each tensor of the language model."""
    return "text_model." if isinstance(config.vision, MllamaVision) else ""


def origin_of(config: ModelConfig, place: Place, stored: Container[str]) -> Origin:
    """What holds the tensor: the first of the possible ones that is stored, or else the first. Not for Role.EMBED and
    Role.VISION."""
    prefix = text_prefix(config)
    if place.role in _OUTER:
        possible: tuple[Origin, ...] = (_OUTER[place.role],)
    else:
        prefix += _block(config, place.layer)
        possible = _LAYER[place.role]
    named = [origin._replace(name=prefix + origin.name) for origin in possible]
    return next((origin for origin in named if origin.name in stored), named[0])


def _block(config: ModelConfig, layer: int) -> str:
    """Meta counts self-attention and cross-attention layers apart."""
    crosses = sum(plan.cross for plan in config.plan[:layer])
    if config.plan[layer].cross:
        return f"cross_attention_layers.{crosses}."
    return f"layers.{layer - crosses}."


def ignored(name: str) -> bool:
    """Whether a tensor of this name carries no weight of the model."""
    return _IGNORED.fullmatch(name) is not None


# The image encoders: a canonical name's parts -> Meta's, tried in this order.
_MLLAMA = (
    (r"multi_modal_projector\.(weight|bias)", r"vision_model.vision_projection.\1"),
    (r"vision_model\.patch_embedding\.weight", "vision_model.vision_encoder.conv1._linear.weight"),
    (r"vision_model\.layernorm_(pre|post)\.(.+)", r"vision_model.vision_encoder.ln_\1.\2"),
    (r"vision_model\.gated_positional_embedding\.embedding", "vision_model.vision_encoder.positional_embedding"),
    (
        r"vision_model\.gated_positional_embedding\.tile_embedding\.weight",
        "vision_model.vision_encoder.gated_positional_embedding",
    ),
    (
        r"vision_model\.gated_positional_embedding\.gate",
        "vision_model.vision_encoder.gated_positional_embedding_gate",
    ),
    (
        r"vision_model\.(pre|post)_tile_positional_embedding\.embedding\.weight",
        r"vision_model.vision_encoder.\1_tile_pos_embed.embedding",
    ),
    (
        r"vision_model\.(pre|post)_tile_positional_embedding\.gate",
        r"vision_model.vision_encoder.\1_tile_pos_embed.gate",
    ),
    (r"vision_model\.((?:global_)?transformer)\.layers\.(.+)", r"vision_model.vision_encoder.\1.resblocks.\2"),
    (r"vision_model\.(.+)", r"vision_model.vision_encoder.\1"),
)
_LLAMA4 = (
    (r"multi_modal_projector\.linear_1\.weight", "vision_projection.weight"),
    (r"vision_model\.patch_embedding\.linear\.weight", "vision_embeddings.vision_encoder.conv1._linear.weight"),
    (r"vision_model\.layernorm_(pre|post)\.(.+)", r"vision_embeddings.vision_encoder.ln_\1.\2"),
    (r"vision_model\.vision_adapter\.(.+)", r"vision_embeddings.vision_adapter.\1"),
    (r"vision_model\.model\.layers\.(.+)", r"vision_embeddings.vision_encoder.transformer.resblocks.\1"),
    (r"vision_model\.(.+)", r"vision_embeddings.vision_encoder.\1"),
)
_BLOCK = (
    (r"\.self_attn\.([qkvo])_proj\.", r".attn.w\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.input_layernorm\.", ".ln_1."),
    (r"\.post_attention_layernorm\.", ".ln_2."),
)
_BY_ROWS = re.compile(
    r".*(\.attn\.w[qkv]\.(weight|bias)|\.c_fc\.(weight|bias)|\._linear\.weight|vision_projection\..*)"
)
_BY_COLUMNS = re.compile(r".*(\.attn\.wo\.weight|\.c_proj\.weight)")


def vision_origin(config: ModelConfig, name: str) -> Origin:
    """Where a tensor of the image encoder or its projector comes from, by its canonical name."""
    rules = _MLLAMA if isinstance(config.vision, MllamaVision) else _LLAMA4
    for pattern, replacement in rules:
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, replacement, name)
            break
    for pattern, replacement in _BLOCK:
        name = re.sub(pattern, replacement, name)
    axis = ROWS if _BY_ROWS.fullmatch(name) else COLUMNS if _BY_COLUMNS.fullmatch(name) else None
    return Origin(name, axis)
