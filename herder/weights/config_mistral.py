"""Mistral's params.json -> ModelConfig, for Mistral 7B and Mixtral.

Keys as in mistral_inference's `args.py` (TransformerArgs) and `moe.py` (MoeArgs). Every key is honoured, known to
change nothing about the forward pass, or refused by name. What the file does not say: rope_theta is 10000 where it has
a sliding window or no experts, 1000000 with experts (TransformerArgs' rule); the context is 32768, or 65536 for the
width of Mixtral 8x22B, unless max_seq_len says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herder.core.config import Experts, LayerPlan, ModelConfig, Rope
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.config_meta import MAX_LAYERS, MAX_VOCAB, MAX_WIDTH
from herder.weights.fields import Fields, short

_HARMLESS = ("max_batch_size", "model_type")  # model_type: transformer; the only one that has no other keys

# Keys that change the computation unless they have one of these values.
_NEUTRAL: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("model_type", ("transformer",), "an architecture of its own"),
    ("use_biases", (False,), "biases"),
    ("causal", (True,), "attention to what follows"),
    ("lora", (), "an adaptor"),
    ("vision_encoder", (), "an image encoder"),
    ("quantization", (), "quantized weights"),
)


def is_mistral(values: Mapping[str, Any]) -> bool:
    """Whether a params.json is Mistral's and not Meta's: it says the width of the feed-forward network outright."""
    return "hidden_dim" in values


def config_from_mistral(
    where: str, values: Mapping[str, Any], *, tied: bool, name: str = "", licence: str = ""
) -> ModelConfig:
    """The model's shape. where names params.json in errors; tied: there is no other output matrix than the embedding.
    Raises ModelFileError, UnsupportedModel."""
    keys = Fields(where, values)
    for key in _HARMLESS:
        keys.get(key)
    for key, allowed, meaning in _NEUTRAL:
        keys.neutral(key, allowed, meaning)
    keys.neutral("tied_embeddings", (tied,), "contradicts the tensors that are there")
    layers, dim = keys.integer("n_layers", high=MAX_LAYERS), keys.integer("dim", high=MAX_WIDTH)
    width, window = keys.integer("hidden_dim", high=MAX_WIDTH), keys.integer("sliding_window", None)
    moe = keys.get("moe")
    experts = None
    if moe is not None:
        if not isinstance(moe, dict):
            raise keys.wrong("moe", moe, "expected an object or null")
        inner = Fields(where, {f"moe.{key}": value for key, value in moe.items()}, "moe.")
        count = inner.integer("num_experts", high=1 << 16)
        experts = Experts(count, inner.integer("num_experts_per_tok", high=1 << 16), width, "softmax")
        _refuse_unread(inner)
    theta = keys.number("rope_theta", None, low=1.0)
    if theta is None:
        theta = 1e6 if experts is not None and window is None else 1e4
    heads, head_dim = keys.integer("n_heads", high=MAX_WIDTH), keys.integer("head_dim", high=MAX_WIDTH)
    if heads * head_dim > MAX_WIDTH:
        raise ModelFileError(f"{where}: {heads} heads of {head_dim} are more than any model has: get the file again")
    config = ModelConfig(
        architecture="mixtral" if experts is not None else "mistral",
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=keys.integer("n_kv_heads", high=MAX_WIDTH),
        head_dim=head_dim,
        ffn_dim=width,
        vocab=keys.integer("vocab_size", high=MAX_VOCAB),
        context=keys.integer("max_seq_len", 65536 if dim == 6144 else 32768),
        norm_eps=keys.number("norm_eps"),
        rope=Rope(theta),
        plan=(LayerPlan(window=window, experts=experts is not None),) * layers,
        tied=tied,
        name=name,
        licence=licence,
        experts=experts,
    )
    _refuse_unread(keys)
    return config


def _refuse_unread(keys: Fields) -> None:
    if unknown := keys.unread():
        raise UnsupportedModel(
            f"{keys.where}: {short(keys.prefix + unknown[0])} = {short(keys.get(unknown[0]))} is not known here and "
            "may change the computation: remove the key if it does not, or use a newer version of herder"
        )
