"""The activations of transformers' Llama under the names the native core reports, and the first one that differs.

Names, in the order of the forward pass, each a float32 (tokens, width) array:

    embed                  the embedding rows
    layers.N.attn_norm     after the first RMSNorm
    layers.N.attn.q, .k    after RoPE, heads side by side
    layers.N.attn.v
    layers.N.attn.out      after the output projection, before the residual
    layers.N.ffn_norm      after the second RMSNorm
    layers.N.ffn.out       after the down projection, before the residual
    final_norm, logits
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def names(layers: int) -> list[str]:
    per_layer = ("attn_norm", "attn.q", "attn.k", "attn.v", "attn.out", "ffn_norm", "ffn.out")
    return ["embed", *(f"layers.{i}.{n}" for i in range(layers) for n in per_layer), "final_norm", "logits"]


def record(model: Any, ids: Sequence[int]) -> dict[str, Floats]:
    """Runs `ids` through a LlamaForCausalLM or MistralForCausalLM and returns its activations."""
    import torch

    found: dict[str, Floats] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output[0].float().numpy().copy())

    modeling = importlib.import_module(type(model).__module__)
    rotate = modeling.apply_rotary_pos_emb
    rotated: list[tuple[Any, Any]] = []

    def rotate_and_keep(*args: Any, **kwargs: Any) -> Any:
        rotated.append(rotate(*args, **kwargs))
        return rotated[-1]

    core = model.model
    hooks = [
        core.embed_tokens.register_forward_hook(keep("embed")),
        core.norm.register_forward_hook(keep("final_norm")),
    ]
    for i, layer in enumerate(core.layers):
        at = f"layers.{i}."
        hooks += [
            layer.input_layernorm.register_forward_hook(keep(at + "attn_norm")),
            layer.self_attn.v_proj.register_forward_hook(keep(at + "attn.v")),
            layer.self_attn.o_proj.register_forward_hook(keep(at + "attn.out")),
            layer.post_attention_layernorm.register_forward_hook(keep(at + "ffn_norm")),
            layer.mlp.register_forward_hook(keep(at + "ffn.out")),
        ]
    modeling.apply_rotary_pos_emb = rotate_and_keep
    try:
        with torch.inference_mode():
            found["logits"] = model(torch.tensor([list(ids)])).logits[0].float().numpy()
    finally:
        modeling.apply_rotary_pos_emb = rotate
        for hook in hooks:
            hook.remove()
    for i, (q, k) in enumerate(rotated):  # (1, heads, tokens, head_dim) each
        found[f"layers.{i}.attn.q"] = q[0].transpose(0, 1).flatten(1).numpy()
        found[f"layers.{i}.attn.k"] = k[0].transpose(0, 1).flatten(1).numpy()
    assert set(found) == set(names(len(core.layers)))
    return found


def first_divergence(ours: Mapping[str, Floats], theirs: Mapping[str, Floats], tolerance: float) -> str | None:
    """None, or one line about the first activation, in the order of the forward pass, that differs by more.

    The difference is measured against the larger of 1 and the largest value of the activation. An activation that is
    missing from ours is a divergence.
    """
    for name, expected in theirs.items():
        if name not in ours:
            return f"{name} is not reported"
        got = ours[name]
        if got.shape != expected.shape:
            return f"{name} has shape {got.shape}, not {expected.shape}"
        worst = float(np.abs(got - expected).max())
        if not worst <= tolerance * max(1.0, float(np.abs(expected).max())):
            at = row, column = np.unravel_index(np.abs(got - expected).argmax(), got.shape)
            return f"{name} max|d| = {worst:.3g} (token {row}, column {column}: {got[at]:.6g}, not {expected[at]:.6g})"
    return None
