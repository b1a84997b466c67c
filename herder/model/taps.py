"""Activations by name, to find where two implementations first diverge: those that the native core reports.

    embed                  the embedding rows
    layers.N.attn_norm     after the first RMSNorm
    layers.N.attn.q, .k    after RoPE, norm and temperature, heads side by side
    layers.N.attn.v
    layers.N.attn.out      after the output projection, before the residual
    layers.N.ffn_norm      after the second RMSNorm
    layers.N.router        the router's logits
    layers.N.experts.out   the sum over the routed experts
    layers.N.shared.out    the shared expert
    layers.N.ffn.out       the whole feed-forward network, before the residual
    final_norm, logits

Each has one row a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from herder.model.llama import Layer, Llama
from herder.model.moe import MixtureOfExperts

Report = Callable[[str, Tensor], None]


@contextmanager
def tapped(model: Llama, report: Report) -> Iterator[None]:
    """Reports each activation of the passes within, float32 (tokens, width), with forward hooks."""

    def show(name: str, value: Tensor, last: int) -> None:
        report(name, value.detach().flatten(-last).flatten(0, -2).float())

    def after(name: str) -> Any:
        return lambda module, arguments, output: show(name, output, 1)

    def attended(at: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            for name, value in zip(("q", "k", "v"), arguments, strict=False):
                show(f"{at}attn.{name}", value, 2)

        return hook

    core = model.model
    hooks = [
        core.embed_tokens.register_forward_hook(after("embed")),
        core.norm.register_forward_hook(after("final_norm")),
        model.lm_head.register_forward_hook(after("logits")),
    ]
    for number, layer in enumerate(core.layers):
        if not isinstance(layer, Layer):
            continue
        at = f"layers.{number}."
        named = {"attn_norm": layer.input_layernorm, "attn.out": layer.self_attn, "ffn.out": layer.mlp}
        named["ffn_norm"] = layer.post_attention_layernorm
        if isinstance(layer.mlp, MixtureOfExperts):
            named |= {"router": layer.mlp.router, "experts.out": layer.mlp.experts}
            if layer.mlp.shared_expert is not None:
                named["shared.out"] = layer.mlp.shared_expert
        hooks += [module.register_forward_hook(after(at + name)) for name, module in named.items()]
        hooks.append(layer.self_attn.attend.register_forward_pre_hook(attended(at)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
