"""A model as GGUF: metadata and tensors, as llama.cpp's converter writes them.

Norms, biases and routers are F32, as llama.cpp wants them; q and k rows are interleaved; the experts of a layer are one
tensor. Keys as in ggml's docs/gguf.md. The keys are read back with our own reader and compared with the model's
configuration: what GGUF cannot say is refused instead of lost.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from herder.convert.tensors import FLOATS, Casts, Interleaved, in_order, output, stacked
from herder.convert.tokenizer_files import gguf_vocabulary
from herder.convert.vocabulary import check_size, read_words
from herder.core.config import ModelConfig, Rope
from herder.core.errors import UnsupportedModel
from herder.formats import table
from herder.formats.table import Format
from herder.weights.config_gguf import config_from_gguf
from herder.weights.names import EXPERTS, Role, gguf_name
from herder.weights.output import Output
from herder.weights.rope import inv_freq
from herder.weights.source import ModelFiles, TensorSource

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}  # LLAMA_FTYPE_*


def gguf_model(files: ModelFiles, fmt: Format | None, casts: Casts) -> tuple[dict[str, Any], list[Output]]:
    """(metadata, tensors). fmt: what the matrices of floats are cast to; None: nothing.

    Raises UnsupportedModel, by name, for what GGUF cannot say.
    """
    config = files.config
    if config.vision is not None or any(plan.cross for plan in config.plan):
        raise UnsupportedModel(
            f"{files.path} has an image encoder, which a GGUF model cannot hold: use the files as they are"
        )
    words = read_words(files)
    check_size(str(files.path), words, config.vocab)
    factors = _factors(config)
    metadata = {**_general(files), **_shape(config), **_rope(config)}
    _compare(files, config, metadata, factors)
    outputs = [_vector(name, values) for name, values in factors.items()]
    outputs += _tensors(files, config, fmt, casts)
    matrices = [out.format.name for out in outputs if len(out.shape) > 1]
    metadata["general.file_type"] = _FILE_TYPES.get(max(set(matrices), key=matrices.count), 0)
    metadata["general.quantization_version"] = 2
    return metadata | gguf_vocabulary(words, config.vocab, files.chat_templates), outputs


def _vector(name: str, values: tuple[float, ...]) -> Output:
    return Output(name, table.F32, (len(values),), lambda: iter((array("f", values).tobytes(),)))


def _architecture(config: ModelConfig) -> str:
    return "llama4" if config.architecture.startswith("llama4") else "llama"


def _general(files: ModelFiles) -> dict[str, Any]:
    found: dict[str, Any] = {"general.architecture": _architecture(files.config), "general.type": "model"}
    if files.name:
        found["general.name"] = files.name
    if files.licence:
        found["general.license"] = files.licence
    return found


def _shape(config: ModelConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "block_count": config.layers, "context_length": config.context, "embedding_length": config.dim,
        "feed_forward_length": config.ffn_dim, "vocab_size": config.vocab, "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim, "rope.freq_base": config.rope.theta,
    }  # fmt: skip
    moe = config.experts
    if moe is not None:
        keys |= {"expert_count": moe.count, "expert_used_count": moe.active, "expert_feed_forward_length": moe.ffn_dim}
    local = config.local
    if local is not None and local.window is not None:
        keys["attention.sliding_window"] = local.window
    if _architecture(config) == "llama4":
        keys["interleave_moe_layer_step"] = next((i + 1 for i, p in enumerate(config.plan) if p.experts), 0)
        keys.setdefault("expert_feed_forward_length", config.ffn_dim)
        if local is None:
            keys["attention.sliding_window"] = 0  # read as: full attention, RoPE everywhere
    return {f"{_architecture(config)}.{key}": value for key, value in keys.items()}


def _rope(config: ModelConfig) -> dict[str, Any]:
    rope, keys = config.rope, dict[str, Any]()
    if rope.kind in ("linear", "yarn", "longrope"):
        keys = {"type": rope.kind, "factor": rope.factor}
    if rope.kind in ("yarn", "longrope") and rope.original_context is not None:
        keys["original_context_length"] = rope.original_context
    if rope.kind == "yarn":
        keys |= {"yarn_beta_fast": rope.beta_fast, "yarn_beta_slow": rope.beta_slow}
    if rope.attention_factor is not None:
        own = 0.1 * math.log(rope.factor) + 1.0 if rope.kind == "yarn" and rope.factor > 1 else 1.0
        keys["attn_factor"] = rope.attention_factor / own
    return {f"{_architecture(config)}.rope.scaling.{key}": value for key, value in keys.items()}


def _factors(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """The divisors of the frequencies, which GGUF keeps as tensors; of llama3, what its formula makes of them."""
    rope = config.rope
    if rope.kind == "longrope":
        return {"rope_factors_short.weight": rope.factors or (), "rope_factors_long.weight": rope.long_factors or ()}
    if rope.factors is not None:
        return {"rope_freqs.weight": rope.factors}
    if rope.kind != "llama3":
        return {}
    scaled, _ = inv_freq(config, config.context)
    plain, _ = inv_freq(replace(config, rope=Rope(rope.theta)), config.context)
    divisors = (p / s for p, s in zip(plain, scaled, strict=True))
    return {
        "rope_freqs.weight": tuple(rope.factor if math.isclose(d, rope.factor, rel_tol=1e-6) else d for d in divisors)
    }


def _compare(
    files: ModelFiles, config: ModelConfig, metadata: dict[str, Any], factors: dict[str, tuple[float, ...]]
) -> None:
    """Raises UnsupportedModel unless our reader finds the same model in the metadata."""
    where, roles = str(files.path), {tensor.role for tensor in files.tensors}
    found = config_from_gguf(where, metadata, embedding_rows=config.vocab, roles=roles, factors=factors)
    ours, theirs = inv_freq(config, config.context), inv_freq(found, config.context)
    close = all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(ours[0], theirs[0], strict=True))
    if not close or not math.isclose(ours[1], theirs[1], rel_tol=1e-5):
        raise UnsupportedModel(
            f"{where} has RoPE scaling {config.rope.kind}, which GGUF cannot say for a model like this"
        )
    wanted = replace(
        config, architecture=found.architecture, rope=found.rope, norm_eps=found.norm_eps, name=found.name,
        licence=found.licence,
    )  # fmt: skip
    for key in ("plan", "experts", "temperature", "attention_bias", "mlp_bias", "tied"):
        if getattr(found, key) != getattr(wanted, key):
            raise UnsupportedModel(
                f"{where} has {key.replace('_', ' ')} that GGUF cannot say for architecture {found.architecture}: it "
                "would be read as another model"
            )
    if found != wanted:
        raise UnsupportedModel(f"{where} has a shape that GGUF cannot say for architecture {found.architecture}")


def _tensors(files: ModelFiles, config: ModelConfig, fmt: Format | None, casts: Casts) -> list[Output]:
    order = Interleaved(config) if _architecture(config) in ("llama", "llama4") else None
    experts: dict[tuple[Role, int], list[TensorSource]] = defaultdict(list)
    for tensor in files.tensors:
        if tensor.role in EXPERTS:
            experts[tensor.role, tensor.layer].append(tensor)
    outputs = []
    for tensor in in_order(files.tensors):
        name = gguf_name(tensor.role, tensor.layer)
        if tensor.role not in EXPERTS:
            chosen, shape = _format(tensor, fmt), (tensor.cols,) if tensor.rows == 1 else (tensor.rows, tensor.cols)
            rows = order.of(tensor.role) if order is not None else None
            outputs.append(output(tensor, name, chosen, shape, casts, rows))
        elif group := experts.pop((tensor.role, tensor.layer), None):
            outputs.append(_stack(sorted(group, key=lambda t: t.expert), name, fmt, casts))
    return outputs


def _stack(group: Sequence[TensorSource], name: str, fmt: Format | None, casts: Casts) -> Output:
    formats = {_format(tensor, fmt).name for tensor in group}
    if len(formats) > 1:
        raise UnsupportedModel(
            f"{name}: the experts of this layer are stored as {' and '.join(sorted(formats))}, but GGUF keeps them in "
            "one tensor: give --type"
        )
    return stacked(group, name, _format(group[0], fmt), casts)


def _format(tensor: TensorSource, fmt: Format | None) -> Format:
    """Vectors and routers widened to F32; matrices as they are, or floats as `fmt` says."""
    if tensor.rows == 1 or tensor.role is Role.ROUTER:
        return table.F32
    return tensor.format if fmt is None or tensor.format not in FLOATS else fmt
