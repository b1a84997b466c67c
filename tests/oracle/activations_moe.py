"""The activations of transformers' Mixtral and Llama 4 under the names that our runtimes report.

Those of activations.py, in the same order, and in layers with experts, between ffn_norm and ffn.out:

    layers.N.router        the router's logits
    layers.N.experts.out   the sum over the routed experts
    layers.N.shared.out    the shared expert (Llama 4)

attn.q and attn.k are what attention is computed from: after RoPE, norm and temperature. Llama 4 keeps heads
interleaved; here they are half-split, as ours are.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from tests.oracle.activations import Floats

_ORDER = (
    "attn_norm", "attn.q", "attn.k", "attn.v", "attn.out", "ffn_norm", "router", "experts.out", "shared.out", "ffn.out",
)  # fmt: skip


def record(model: Any, ids: Sequence[int]) -> dict[str, Floats]:
    """Runs `ids` through a MixtralForCausalLM or Llama4ForCausalLM with eager attention."""
    import torch

    found: dict[str, Floats] = {}
    modeling = importlib.import_module(type(model).__module__)
    interleaved = "llama4" in modeling.__name__
    eager = modeling.eager_attention_forward
    count = len(ids)

    def keep(name: str, change: Any = lambda output: output) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            found[name] = change(output).detach().reshape(count, -1).float().numpy().copy()

        return hook

    def half_split(x: Any) -> Any:
        return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) if interleaved else x

    def attend(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        for name, x in (("q", half_split(q)), ("k", half_split(k)), ("v", v)):  # (1, heads, tokens, head_dim)
            rows = x[0].transpose(0, 1).flatten(1)
            found[f"layers.{module.layer_idx}.attn.{name}"] = rows.detach().float().numpy().copy()
        return eager(module, q, k, v, *args, **kwargs)

    core = model.model
    hooks = [
        core.embed_tokens.register_forward_hook(keep("embed")),
        core.norm.register_forward_hook(keep("final_norm")),
    ]
    for i, layer in enumerate(core.layers):
        at = f"layers.{i}."
        mlp = layer.feed_forward if interleaved else layer.mlp
        routed = hasattr(mlp, "experts")
        hooks += [
            layer.input_layernorm.register_forward_hook(keep(at + "attn_norm")),
            layer.self_attn.o_proj.register_forward_hook(keep(at + "attn.out")),
            layer.post_attention_layernorm.register_forward_hook(keep(at + "ffn_norm")),
            mlp.register_forward_hook(keep(at + "ffn.out", lambda out: out[0] if isinstance(out, tuple) else out)),
        ]
        if routed and interleaved:
            hooks += [
                mlp.router.register_forward_hook(keep(at + "router", lambda out: out[1])),
                mlp.experts.register_forward_hook(
                    keep(at + "experts.out", lambda out: out.view(-1, count, out.shape[-1]).sum(0))
                ),
                mlp.shared_expert.register_forward_hook(keep(at + "shared.out")),
            ]
        elif routed:
            hooks += [
                mlp.gate.register_forward_hook(keep(at + "router", lambda out: out[0])),
                mlp.experts.register_forward_hook(keep(at + "experts.out")),
            ]
    modeling.eager_attention_forward = attend
    try:
        with torch.inference_mode():
            found["logits"] = model(torch.tensor([list(ids)])).logits[0].float().numpy()
    finally:
        modeling.eager_attention_forward = eager
        for hook in hooks:
            hook.remove()
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> tuple[int, int, int]:
    """Where in the forward pass an activation is computed."""
    outside = {"embed": 0, "final_norm": 2, "logits": 3}
    if name in outside:
        return outside[name], 0, 0
    _, layer, rest = name.split(".", 2)
    return 1, int(layer), _ORDER.index(rest)
