"""A model's shape in words: what `herder show` says of files and `herder models` of published models alike."""

from __future__ import annotations

from collections import Counter

from herder.cache.plan import sequence_bytes
from herder.core.config import ModelConfig
from herder.core.sizes import bytes_text, count_text

Lines = list[tuple[str, str]]


def parameters_text(config: ModelConfig, parameters: int, vision: int) -> str:
    """parameters: all of them. vision: those of the image encoder, among them."""
    text = f"{count_text(parameters)} ({parameters:,})"
    if config.experts is not None:
        text += f", {count_text(config.active_parameters)} active"
    if vision:
        text += f", {count_text(vision)} of them for images"
    return text


def shape_lines(config: ModelConfig) -> Lines:
    """Layers, what is special about them, heads, vocabulary, context and RoPE."""
    from herder.weights.summary import describe

    rope = f"{config.rope.kind}, theta {config.rope.theta:g}"
    if config.rope.factor != 1:
        rope += f", factor {config.rope.factor:g}"
    lines = [("layers", f"{config.layers} of dimension {config.dim}, feed-forward {config.ffn_dim}")]
    kinds = Counter(config.plan).items()
    words = "; ".join(f"{count} x {describe(plan)}" for plan, count in kinds)
    if words != f"{config.layers} x full attention":
        lines += [("attention", words)]
    if (moe := config.experts) is not None:
        shared = f" and a shared one of {moe.shared_ffn_dim}" if moe.shared_ffn_dim else ""
        lines += [("experts", f"{moe.active} of {moe.count} of {moe.ffn_dim}{shared}, by {moe.router}")]
    if (vision := config.vision) is not None:
        tiles = f"up to {vision.max_tiles} tiles of {vision.tile} x {vision.tile} pixels"
        lines += [("images", f"{tiles}, {vision.layers} layers of dimension {vision.dim}")]
    return [
        *lines,
        ("heads", f"{config.heads} of {config.head_dim}, {config.kv_heads} for keys and values"),
        ("vocabulary", f"{config.vocab} tokens, " + ("head tied to the embedding" if config.tied else "own head")),
        ("context", f"{config.context} tokens"),
        ("rope", rope),
    ]


def kv_text(config: ModelConfig, tokens: int) -> str:
    """The 16-bit KV cache of one sequence, and what of it is in layers of bounded reach."""
    kv = sequence_bytes(config, tokens)
    if not kv.local:
        return bytes_text(kv.everywhere)
    if not kv.everywhere:
        return f"{bytes_text(kv.local)}, all of it in layers of bounded reach"
    return f"{bytes_text(sum(kv))} ({bytes_text(kv.everywhere)} + {bytes_text(kv.local)} in layers of bounded reach)"
