"""The tiny models with experts: the shapes of Mixtral and Llama 4, and how their files lay tensors out.

`mixtral()` and `llama4()` are arguments for tiny.py's writers. The layouts are written here from the formats' own
description (transformers' modeling files; llama.cpp's tensor names), so that a reader that follows them finds the
canonical tensors again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.core.config import Experts, LayerPlan, ModelConfig, Temperature

Rows = NDArray[np.uint8]


def mixtral(experts: int = 4, active: int = 2, layers: int = 2, ffn_dim: int = 96, **shape: Any) -> dict[str, Any]:
    """Every layer has experts. shape: further arguments of tiny_config."""
    moe = Experts(experts, active, ffn_dim, "softmax")
    plan = (LayerPlan(window=shape.pop("window", None), experts=True),) * layers
    kept = {"architecture": "mixtral", "layers": layers, "ffn_dim": ffn_dim, "tied": False}
    return {**kept, "experts": moe, "plan": plan, **shape}


def llama4(
    experts: int = 4,
    active: int = 1,
    layers: int = 4,
    step: int = 2,
    chunk: int | None = 8,
    floor: int = 8,
    qk_norm: bool = True,
    **shape: Any,
) -> dict[str, Any]:
    """Every step-th layer has experts, every fourth no RoPE; without a chunk, all have RoPE and see everything. GGUF
    can say neither chunk nor floor: it has 8192 of both. shape: further arguments of tiny_config."""
    moe = Experts(experts, active, 64, "sigmoid", 64)
    plan = tuple(
        LayerPlan(
            rope=rope, chunk=chunk if rope else None, qk_norm=qk_norm and rope, temperature=not rope,
            experts=bool(experts) and (i + 1) % step == 0,
        )
        for i in range(layers)
        for rope in [chunk is None or (i + 1) % 4 != 0]
    )  # fmt: skip
    temperature = Temperature(floor, 0.1) if any(layer.temperature for layer in plan) else None
    kept = {"architecture": "llama4_text", "layers": layers, "tied": False, "temperature": temperature}
    return {**kept, "experts": moe if experts else None, "plan": plan, **shape}


def expert_matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Canonical module -> shape, of the feed-forward network of a layer with experts."""
    moe = config.experts
    assert moe is not None
    shapes = {"mlp.router": (moe.count, config.dim)}
    for expert in range(moe.count):
        for name in ("gate", "up"):
            shapes[f"mlp.experts.{expert}.{name}_proj"] = (moe.ffn_dim, config.dim)
        shapes[f"mlp.experts.{expert}.down_proj"] = (config.dim, moe.ffn_dim)
    if moe.shared_ffn_dim:
        shapes |= {f"mlp.shared_expert.{name}_proj": (moe.shared_ffn_dim, config.dim) for name in ("gate", "up")}
        shapes["mlp.shared_expert.down_proj"] = (config.dim, moe.shared_ffn_dim)
    return shapes


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows from Hugging Face's half-split order to the interleaved one of Meta and GGUF."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def interleaved(name: str, rows: Rows, config: ModelConfig) -> Rows:
    """interleave() of a q or k weight or bias, whose rows are `rows` (of a bias: its elements); others as they are."""
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    return rows if heads is None else interleave(rows, heads)


def gguf_stacked(stored: Mapping[str, Rows]) -> Iterator[tuple[str, Rows]]:
    """(canonical name, rows), the experts of a layer joined as (experts, rows, bytes) under the name of expert 0."""
    for name, rows in stored.items():
        if ".experts." not in name:
            yield name, rows
        elif ".experts.0." in name:
            before, after = name.split(".experts.0.")
            count = sum(other.startswith(before) and other.endswith(after) for other in stored if ".experts." in other)
            yield name, np.stack([stored[f"{before}.experts.{expert}.{after}"] for expert in range(count)])


def hf_layout(config: ModelConfig, stored: Mapping[str, Rows], size: int) -> dict[str, tuple[Rows, tuple[int, ...]]]:
    """File name -> (bytes, shape). stored: canonical name -> rows of bytes, of `size` bytes an element."""
    files: dict[str, tuple[Rows, tuple[int, ...]]] = {}
    for name, rows in stored.items():
        shape = (rows.shape[0], rows.shape[1] // size)
        if config.architecture == "llama4_text":
            if name.endswith(".bias"):
                rows = interleaved(name, rows.reshape(-1, size), config).reshape(1, -1)
            elif ".self_attn." in name:
                rows = interleaved(name, rows, config)
            if ".experts." in name:
                continue
            name = name.replace(".mlp.", ".feed_forward.")
        elif config.architecture == "mixtral":
            name = name.replace(".mlp.router.", ".mlp.gate.").replace(".mlp.", ".block_sparse_moe.")
            for ours, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
                name = re.sub(rf"(\.experts\.\d+)\.{ours}\.", rf"\1.{theirs}.", name)
        files[name] = np.ascontiguousarray(rows), shape if shape[0] > 1 else shape[1:]
    if config.architecture == "llama4_text":
        for layer in (i for i, plan in enumerate(config.plan) if plan.experts):
            files |= _llama4_experts(config, stored, layer, size)
    return files


def _llama4_experts(
    config: ModelConfig, stored: Mapping[str, Rows], layer: int, size: int
) -> dict[str, tuple[Rows, tuple[int, ...]]]:
    """gate_up_proj (experts, dim, 2 ffn_dim) and down_proj (experts, ffn_dim, dim): transposes, all experts in one."""
    assert config.experts is not None
    at = f"model.layers.{layer}.mlp.experts."

    def turned(expert: int, name: str) -> NDArray[Any]:
        rows = stored[f"{at}{expert}.{name}_proj.weight"]
        return np.ascontiguousarray(rows).view(f"u{size}").T

    count = range(config.experts.count)
    down = np.stack([turned(e, "down") for e in count])
    both = np.stack([np.concatenate([turned(e, "gate"), turned(e, "up")], axis=1) for e in count])
    at = at.replace(".mlp.", ".feed_forward.")
    return {f"{at}{name}_proj": (np.ascontiguousarray(a), a.shape) for name, a in (("gate_up", both), ("down", down))}


def hf_keys(config: ModelConfig) -> dict[str, Any]:
    """What config.json says beside the keys of a dense model."""
    moe = config.experts
    if config.architecture == "mixtral":
        assert moe is not None
        counts = {"num_local_experts": moe.count, "num_experts_per_tok": moe.active}
        return {**counts, "sliding_window": config.plan[0].window}
    local = config.local
    return {
        "intermediate_size": moe.ffn_dim if moe else config.ffn_dim,
        "intermediate_size_mlp": config.ffn_dim,
        "num_local_experts": moe.count if moe else 0,
        "num_experts_per_tok": moe.active if moe else 0,
        "moe_layers": [i for i, plan in enumerate(config.plan) if plan.experts],
        "no_rope_layers": [int(plan.rope) for plan in config.plan],
        "attention_chunk_size": local.chunk if local else None,
        "use_qk_norm": any(plan.qk_norm for plan in config.plan),
        "attn_temperature_tuning": config.temperature is not None,
        "floor_scale": config.temperature.floor if config.temperature else 8192,
        "attention_bias": config.attention_bias,
    }
