"""Hugging Face's names of each model -> canonical names, whatever wraps the language model and its feed-forward part.

Sources: the hub's files of Mixtral, Llama 4 and Llama 3.2 Vision, what `save_pretrained` of transformers 5 writes, and
the names of its modules in memory (`conversion_mapping.py`), which other tools save.
"""

from __future__ import annotations

import re

_WRAPPED = (
    (re.compile(r"^(model\.)?language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(model\.language_model|language_model\.model)\."), "model."),
    (re.compile(r"^model\.(vision_model|multi_modal_projector)\."), r"\1."),
)
_MIXTRAL = (
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (re.compile(r"\.mlp\.gate\."), ".mlp.router."),
    (re.compile(r"(\.mlp\.experts\.\d+)\.w1\."), r"\1.gate_proj."),
    (re.compile(r"(\.mlp\.experts\.\d+)\.w2\."), r"\1.down_proj."),
    (re.compile(r"(\.mlp\.experts\.\d+)\.w3\."), r"\1.up_proj."),
)
_LLAMA4 = ((re.compile(r"^(model\.layers\.\d+)\.feed_forward\."), r"\1.mlp."),)

_RENAMED: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {
    "mixtral": _MIXTRAL,
    "llama4": (*_WRAPPED, *_LLAMA4),
    "llama4_text": (*_WRAPPED, *_LLAMA4),
    "mllama": _WRAPPED,
    "mllama_text_model": _WRAPPED,
}

_STACKED = re.compile(r"model\.layers\.(0|[1-9]\d{0,8})\.mlp\.experts\.(gate_up_proj|down_proj)")


def renamed(name: str, architecture: str) -> str:
    """The canonical name, as far as the name is one of this architecture (ModelConfig.architecture); what follows the
    module (`.weight`, `.bias`, a quantizer's suffix) stays as it is."""
    for pattern, replacement in _RENAMED.get(architecture, ()):
        name = pattern.sub(replacement, name)
    return name


def stacked_experts(name: str) -> tuple[int, str] | None:
    """(layer, `gate_up_proj` or `down_proj`) of a renamed tensor that holds all experts of a layer, else None."""
    match = _STACKED.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])
