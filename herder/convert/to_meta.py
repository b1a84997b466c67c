"""A model as Meta's files: params.json and the tensors of one consolidated.00.pth, under llama3/model.py's names.

Dense models only. params.json is read back with our own reader and compared with the model's configuration, but for the
context, which it does not say: what it cannot say is refused instead of lost.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from herder.convert.tensors import Casts, Interleaved, in_order, output
from herder.convert.to_hf import chosen_format
from herder.core.config import ModelConfig
from herder.core.errors import UnsupportedModel
from herder.formats.table import Format
from herder.weights import names_meta
from herder.weights.config_meta import config_from_meta
from herder.weights.names import BIASES, Place, Role
from herder.weights.output import Output
from herder.weights.rope import inv_freq
from herder.weights.source import ModelFiles

_LLAMA3_CONTEXT = 8192  # the only original context that use_scaled_rope means


def meta_params(files: ModelFiles) -> dict[str, Any]:
    """params.json. Raises UnsupportedModel, by name, for what it cannot say."""
    config, where = files.config, str(files.path)
    special = {
        "an image encoder": config.vision is not None,
        "experts": config.experts is not None,
        "biases": config.attention_bias or config.mlp_bias,
        "a sliding window": config.local is not None,
        "Llama 4's layers": config.architecture.startswith("llama4"),
        f"heads of {config.head_dim}, not {config.dim / config.heads:g},": config.head_dim * config.heads != config.dim,
    }
    for what, there in special.items():
        if there:
            raise UnsupportedModel(f"{where} has {what} which cannot be written in Meta's format: use --to hf or gguf")
    multiplier, multiple = _ffn(config)
    values: dict[str, Any] = {
        "dim": config.dim, "n_layers": config.layers, "n_heads": config.heads, "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab, "multiple_of": multiple, "norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta, "use_scaled_rope": False,
    }  # fmt: skip
    if multiplier is not None:
        values["ffn_dim_multiplier"] = multiplier
    values |= _scaling(where, config)
    found = config_from_meta(
        where, values, vocab=config.vocab, tied=config.tied, name=config.name, licence=config.licence
    )
    ours, theirs = inv_freq(config, config.context), inv_freq(found, config.context)
    if not all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(ours[0], theirs[0], strict=True)):
        raise UnsupportedModel(f"{where} has RoPE scaling that params.json cannot say: use --to hf or gguf")
    same = replace(config, context=found.context, rope=found.rope, architecture=found.architecture)
    if found != same:
        raise UnsupportedModel(f"{where} is a model that params.json cannot describe exactly: use --to hf or gguf")
    return values


def _ffn(config: ModelConfig) -> tuple[float | None, int]:
    """(ffn_dim_multiplier, multiple_of) from which Meta's rule gives the width: the published pairs first."""

    def width(multiplier: float | None, multiple: int) -> int:
        hidden = int(2 * 4 * config.dim / 3)
        if multiplier is not None:
            hidden = int(multiplier * hidden)
        return -(-hidden // multiple) * multiple

    published = [(None, 256), (1.3, 1024), (1.3, 4096), (1.5, 256), (1.0, 256), (1.2, 4096), (1.3, 256)]
    exact = [(config.ffn_dim / int(2 * 4 * config.dim / 3), multiple) for multiple in (256, 64, 32, 16, 8, 4, 2, 1)]
    for multiplier, multiple in [*published, *exact]:
        if width(multiplier, multiple) == config.ffn_dim:
            return multiplier, multiple
    raise UnsupportedModel(f"params.json cannot say a feed-forward width of {config.ffn_dim} for dim {config.dim}")


def _scaling(where: str, config: ModelConfig) -> dict[str, Any]:
    """use_scaled_rope. A GGUF's factors are tried as what Meta's formula makes of its own parameters."""
    rope = config.rope
    if rope.kind == "default" and rope.factors is None:
        return {}
    if rope.kind == "llama3" and (rope.original_context, rope.low_freq_factor) == (_LLAMA3_CONTEXT, 1.0):
        factor, high = rope.factor, rope.high_freq_factor
    elif rope.kind == "default" and rope.factors is not None:
        factor, high = max(rope.factors), 4.0
    else:
        raise UnsupportedModel(f"{where} has RoPE scaling {rope.kind} that params.json cannot say: use --to hf or gguf")
    return {"use_scaled_rope": True, "rope_scaling_factor": factor, "rope_high_freq_factor": high}


def meta_tensors(files: ModelFiles, base: Format, wanted: Format | None, casts: Casts) -> list[Output]:
    """The tensors, in the order of the layers. Of a tied model, see `shared_tensors`."""
    config = files.config
    order = Interleaved(config)
    outputs = []
    for tensor in in_order(files.tensors):
        assert tensor.role not in BIASES
        fmt = chosen_format(tensor, base, wanted)
        shape = (tensor.cols,) if tensor.rows == 1 and "norm" in tensor.name else (tensor.rows, tensor.cols)
        outputs.append(
            output(tensor, _name(config, tensor.role, tensor.layer), fmt, shape, casts, order.of(tensor.role))
        )
    return outputs


def shared_tensors(config: ModelConfig) -> dict[str, str]:
    """A tied model's output matrix is the embedding's storage under a second name, as in Meta's Llama 3.2 1B and 3B."""
    return {"output.weight": names_meta.EMBEDDING} if config.tied else {}


def _name(config: ModelConfig, role: Role, layer: int) -> str:
    return names_meta.EMBEDDING if role is Role.EMBED else names_meta.origin_of(config, Place(role, layer), ()).name
