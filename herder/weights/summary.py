"""What `herder show` says about a model, as data: shape, formats, sizes, licence, chat template, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from herder.core.config import LayerPlan, ModelConfig
from herder.weights.names import Role
from herder.weights.source import ModelFiles

KV_BYTES_PER_VALUE = 2  # float16 and bfloat16


@dataclass(frozen=True, slots=True)
class FormatShare:
    """How much of a model is in one storage format."""

    name: str
    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """parameters: weights in the files (a tied head is there once). active_parameters: those of the language model that
    one token's computation reads; with experts, fewer than all. vision_parameters: those of the image encoder and its
    projector, 0 without one. bits_per_weight: of all tensors together, as they are loaded. formats: largest first.
    layers: the kinds of layers and how many there are of each, in the order of their first appearance.
    template: first non-empty line of the default chat template, or None without one.
    kv_bytes: (context, bytes of KV cache at 2 bytes a value), one sequence, in the order asked for."""

    name: str
    kind: str
    paths: tuple[str, ...]
    file_bytes: int
    licence: str
    config: ModelConfig
    parameters: int
    active_parameters: int
    vision_parameters: int
    bits_per_weight: float
    formats: tuple[FormatShare, ...]
    layers: tuple[tuple[LayerPlan, int], ...]
    template: str | None
    templates: tuple[str, ...]
    kv_bytes: tuple[tuple[int, int], ...]


def summarize(model: ModelFiles, contexts: Sequence[int] = ()) -> Summary:
    """contexts: the lengths to report memory at; by default the model's own.

    Raises UnsupportedModel for a vocabulary-only file.
    """
    config = model.config
    shares: dict[str, tuple[int, int, int]] = {}
    for tensor in model.tensors:
        tensors, weights, size = shares.get(tensor.format.name, (0, 0, 0))
        shares[tensor.format.name] = tensors + 1, weights + tensor.rows * tensor.cols, size + tensor.bytes
    formats = [FormatShare(name, *share) for name, share in shares.items()]
    parameters = sum(share.weights for share in formats)
    lines = (model.chat_template or "").strip().splitlines()
    return Summary(
        name=model.name,
        kind=model.kind,
        paths=tuple(map(str, model.paths)),
        file_bytes=model.file_bytes,
        licence=model.licence,
        config=config,
        parameters=parameters,
        active_parameters=config.active_parameters,
        vision_parameters=sum(t.rows * t.cols for t in model.tensors if t.role is Role.VISION),
        bits_per_weight=8 * sum(share.bytes for share in formats) / parameters,
        formats=tuple(sorted(formats, key=lambda share: -share.bytes)),
        layers=tuple(Counter(config.plan).items()),
        template=lines[0].strip() if lines else None,
        templates=tuple(model.chat_templates),
        kv_bytes=tuple((n, config.kv_bytes(n, KV_BYTES_PER_VALUE)) for n in contexts or (config.context,)),
    )


def describe(plan: LayerPlan) -> str:
    """A kind of layer in words: `chunks of 8192, QK norm, experts`."""
    if plan.cross:
        return "attention to images"
    reach = "full attention"
    if plan.window is not None:
        reach = f"window of {plan.window}"
    elif plan.chunk is not None:
        reach = f"chunks of {plan.chunk}"
    said = {"no RoPE": not plan.rope, "QK norm": plan.qk_norm, "temperature": plan.temperature, "experts": plan.experts}
    return ", ".join([reach, *(word for word, applies in said.items() if applies)])
