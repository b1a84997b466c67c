"""The published models as data: shape, licence, date, chat format, and what their weights take in a storage format.

What a speed or memory figure needs to know before any download, and what `herder models` prints. Sources: config.json
and params.json of the published checkpoints; the dates and licences of their model cards. Where Meta's own table
(`llama_models/sku_list.py`) disagrees with the checkpoints, the checkpoints win. Multimodal models are listed in the
form of their Instruct releases (tiles of 560 pixels in Llama 3.2 Vision).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

from herder.core.config import Experts, LayerPlan, Llama4Vision, MllamaVision, ModelConfig, Rope, Temperature
from herder.core.errors import UsageError
from herder.formats.table import F32, Q6_K, Q8_0, Format
from herder.weights.names import Role
from herder.weights.source import required, shape_of
from herder.weights.vision_tensors import vision_shapes


@dataclass(frozen=True, slots=True)
class Published:
    """A published model. config.name is its title, config.licence the licence in short.

    released: year-month-day, as far as it is known. chat: the chat format of its Instruct form (chat.load.NAMES), empty
    for a model that was published as a base model only. note: what the table cannot say. runs: whether Herder runs it.
    """

    config: ModelConfig
    released: str
    chat: str = ""
    note: str = ""
    runs: bool = True

    @property
    def vision_parameters(self) -> int:
        """Weights of the image encoder and its projector."""
        return sum(prod(shape) for shape in vision_shapes(self.config).values())

    @property
    def parameters(self) -> int:
        """All weights, the image encoder's too, as the makers count them."""
        return self.config.parameters + self.vision_parameters


# What stays in float32 when the matrices are quantized.
VECTORS = frozenset({Role.FINAL_NORM, Role.ATTN_NORM, Role.FFN_NORM, Role.Q_NORM, Role.K_NORM, Role.ATTN_GATE,
                      Role.FFN_GATE, Role.ROUTER})  # fmt: skip


def matrix_format(role: Role, cols: int, form: Format) -> Format:
    """The format of one tensor in a file "in `form`", by the habit of llama.cpp's quantizer: norms, gates and routers
    in F32, embedding and head in 6 bits at least; a file of floats has one type."""
    if form.quantized and role in VECTORS:
        return F32
    if role in (Role.EMBED, Role.HEAD) and form.bits_per_weight < 6:
        return Q6_K if Q6_K.whole_blocks(cols) else Q8_0
    return form


def weight_bytes(config: ModelConfig, form: Format) -> int | None:
    """Bytes of a model's tensors in one storage format (see matrix_format), an image encoder in BF16 unless `form` is a
    wider one; None where its rows are no whole blocks."""
    total = 0
    for role, count in _roles(config):
        rows, cols = shape_of(role, config)
        stored = matrix_format(role, cols, form)
        if not stored.whole_blocks(cols):
            return None
        total += count * rows * stored.row_bytes(cols)
    encoder = sum(prod(shape) for shape in vision_shapes(config).values()) * (4 if form == F32 else 2)
    return total + encoder


@cache
def _roles(config: ModelConfig) -> tuple[tuple[Role, int], ...]:
    """How many tensors of each role a model has: tens of thousands where there are many experts."""
    return tuple(Counter(place.role for place in required(config)).items())


# Shapes: dim, layers, heads, kv_heads, ffn_dim -----------------------------------------------------------------------
_7B = (4096, 32, 32, 32, 11008)
_13B = (5120, 40, 40, 40, 13824)
_34B = (8192, 48, 64, 8, 22016)
_70B = (8192, 80, 64, 8, 28672)
_8B = (4096, 32, 32, 8, 14336)
_1B = (2048, 16, 32, 8, 8192)
_3B = (3072, 28, 24, 8, 8192)

_LLAMA3 = {"vocab": 128256, "context": 8192, "rope": Rope(theta=5e5)}
_LLAMA31 = {
    "vocab": 128256,
    "context": 131072,
    "rope": Rope(theta=5e5, kind="llama3", factor=8.0, original_context=8192),
}
_LLAMA32 = _LLAMA31 | {"rope": Rope(theta=5e5, kind="llama3", factor=32.0, original_context=8192), "tied": True}
_CODE = {"context": 16384, "rope": Rope(theta=1e6)}
_MISTRAL = {"architecture": "mistral", "context": 32768, "rope": Rope(theta=1e6)}


def _dense(shape: tuple[int, int, int, int, int], title: str, licence: str, **more: Any) -> ModelConfig:
    """A model of like layers. more: fields of ModelConfig, and window."""
    dim, layers, heads, kv_heads, ffn_dim = shape
    layer = LayerPlan(window=more.pop("window", None), experts=more.get("experts") is not None)
    fields: dict[str, Any] = {
        "architecture": "llama",
        "vocab": 32000,
        "context": 2048,
        "norm_eps": 1e-5,
        "rope": Rope(),
        "plan": (layer,) * layers,
    }
    return ModelConfig(
        layers=layers, dim=dim, heads=heads, kv_heads=kv_heads, head_dim=dim // heads, ffn_dim=ffn_dim, name=title,
        licence=licence, **(fields | more),
    )  # fmt: skip


def _mllama(base: ModelConfig, title: str) -> ModelConfig:
    """A Llama 3.1 with a cross-attention layer before the fourth of every five layers, as Hugging Face numbers them."""
    layers = base.layers * 5 // 4
    cross = LayerPlan(rope=False, cross=True)
    return replace(
        base,
        architecture="mllama",
        name=title,
        licence="Llama 3.2",
        layers=layers,
        plan=tuple(cross if i % 5 == 3 else LayerPlan() for i in range(layers)),
        vision=MllamaVision(
            dim=1280, layers=32, global_layers=8, heads=16, ffn_dim=5120, patch=14, tile=560, max_tiles=4,
            taps=(3, 7, 15, 23, 30),
        ),
        embedding_rows=base.vocab + 8,
        image_token=base.vocab,
    )  # fmt: skip


_LLAMA4_VISION = Llama4Vision(
    dim=1408, layers=34, heads=16, ffn_dim=5632, patch=14, tile=336, projector_dim=4096, output_dim=4096
)


def _llama4(title: str, experts: int, step: int, context: int, rope: Rope, qk_norm: bool) -> ModelConfig:
    """48 layers: every `step`-th with experts, every fourth without RoPE, the others with chunks of 8192."""

    def layer(i: int) -> LayerPlan:
        nope, moe = (i + 1) % 4 == 0, (i + 1) % step == 0
        if nope:
            return LayerPlan(rope=False, temperature=True, experts=moe)
        return LayerPlan(chunk=8192, qk_norm=qk_norm, experts=moe)

    base = _dense((5120, 48, 40, 8, 16384), title, "Llama 4", architecture="llama4", vocab=202048)
    return replace(
        base,
        context=context,
        rope=rope,
        plan=tuple(map(layer, range(48))),
        experts=Experts(experts, 1, 8192, "sigmoid", 8192),
        temperature=Temperature(),
        vision=_LLAMA4_VISION,
        image_token=200092,
    )


def _guard4() -> ModelConfig:
    base = _dense((5120, 48, 40, 8, 8192), "Llama Guard 4 12B", "Llama 4", architecture="llama4", vocab=202048)
    return replace(base, context=131072, rope=Rope(theta=5e5), vision=_LLAMA4_VISION, image_token=200092)


_8B31 = _dense(_8B, "Llama 3.1 8B", "Llama 3.1", **_LLAMA31)
_70B31 = _dense(_70B, "Llama 3.1 70B", "Llama 3.1", **_LLAMA31)
_EPS1 = {"norm_eps": 1e-6}
_LLAMA2 = {"context": 4096}
_QLORA = "Also published in int4: QLoRA and SpinQuant, 2024-10-24, for a context of 8192."
_CODE70 = "Base model; its Instruct and Python forms differ in theta and context."

CATALOGUE: dict[str, Published] = {
    "llama-7b": Published(_dense(_7B, "LLaMA 7B", "research", **_EPS1), "2023-02-24"),
    "llama-13b": Published(_dense(_13B, "LLaMA 13B", "research", **_EPS1), "2023-02-24"),
    "llama-33b": Published(_dense((6656, 60, 52, 52, 17920), "LLaMA 33B", "research", **_EPS1), "2023-02-24"),
    "llama-65b": Published(_dense((8192, 80, 64, 64, 22016), "LLaMA 65B", "research"), "2023-02-24"),
    "llama-2-7b": Published(_dense(_7B, "Llama 2 7B", "Llama 2", **_LLAMA2), "2023-07-18", "llama2"),
    "llama-2-13b": Published(_dense(_13B, "Llama 2 13B", "Llama 2", **_LLAMA2), "2023-07-18", "llama2"),
    "llama-2-70b": Published(_dense(_70B, "Llama 2 70B", "Llama 2", **_LLAMA2), "2023-07-18", "llama2"),
    "code-llama-7b": Published(
        _dense(_7B, "Code Llama 7B", "Llama 2", **_CODE, vocab=32016), "2023-08-24", "codellama",
        "Its Python form has 32000 tokens and no infilling.",
    ),
    "code-llama-13b": Published(
        _dense(_13B, "Code Llama 13B", "Llama 2", **_CODE, vocab=32016), "2023-08-24", "codellama",
        "Its Python form has 32000 tokens and no infilling.",
    ),
    "code-llama-34b": Published(_dense(_34B, "Code Llama 34B", "Llama 2", **_CODE), "2023-08-24", "codellama"),
    "code-llama-70b": Published(
        _dense(_70B, "Code Llama 70B", "Llama 2", **_CODE, vocab=32016), "2024-01-29", "", _CODE70
    ),
    "code-llama-70b-instruct": Published(
        _dense(_70B, "Code Llama 70B Instruct", "Llama 2", vocab=32016, context=4096), "2024-01-29", "codellama-70b",
        "Theta 10000, unlike the base model; so has Code Llama 70B Python.",
    ),
    "llama-3-8b": Published(_dense(_8B, "Llama 3 8B", "Llama 3", **_LLAMA3), "2024-04-18", "llama3"),
    "llama-3-70b": Published(_dense(_70B, "Llama 3 70B", "Llama 3", **_LLAMA3), "2024-04-18", "llama3"),
    "llama-3.1-8b": Published(_8B31, "2024-07-23", "llama3"),
    "llama-3.1-70b": Published(_70B31, "2024-07-23", "llama3"),
    "llama-3.1-405b": Published(
        _dense((16384, 126, 128, 8, 53248), "Llama 3.1 405B", "Llama 3.1", **_LLAMA31), "2024-07-23", "llama3"
    ),
    "llama-3.2-1b": Published(_dense(_1B, "Llama 3.2 1B", "Llama 3.2", **_LLAMA32), "2024-09-25", "llama3", _QLORA),
    "llama-3.2-3b": Published(_dense(_3B, "Llama 3.2 3B", "Llama 3.2", **_LLAMA32), "2024-09-25", "llama3", _QLORA),
    "llama-3.2-11b-vision": Published(
        _mllama(_8B31, "Llama 3.2 11B Vision"), "2024-09-25", "llama3", "The base model has tiles of 448 pixels."
    ),
    "llama-3.2-90b-vision": Published(_mllama(_70B31, "Llama 3.2 90B Vision"), "2024-09-25", "llama3"),
    "llama-3.3-70b": Published(
        replace(_70B31, name="Llama 3.3 70B Instruct", licence="Llama 3.3"), "2024-12-06", "llama3"
    ),
    "llama-4-scout": Published(
        _llama4(
            "Llama 4 Scout 17B 16E", 16, 1, 10_485_760,
            Rope(theta=5e5, kind="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0,
                 original_context=8192),
            qk_norm=True,
        ),
        "2025-04-05", "llama4", "The base model was trained on a context of 262144.",
    ),
    "llama-4-maverick": Published(
        _llama4("Llama 4 Maverick 17B 128E", 128, 2, 1_048_576, Rope(theta=5e5), qk_norm=False), "2025-04-05", "llama4"
    ),
    "llama-guard-1-7b": Published(
        _dense(_7B, "Llama Guard 1 7B", "Llama 2", **_LLAMA2), "2023-12-07", "llama-guard-1"
    ),
    "llama-guard-2-8b": Published(
        _dense(_8B, "Llama Guard 2 8B", "Llama 3", **_LLAMA3), "2024-04-18", "llama-guard-2",
        "The licence file beside it says Llama 2, its card Llama 3.",
    ),
    "llama-guard-3-8b": Published(
        replace(_8B31, name="Llama Guard 3 8B", licence="Llama 3.2"), "2024-07-23", "llama-guard-3"
    ),
    "llama-guard-3-1b": Published(
        _dense(_1B, "Llama Guard 3 1B", "Llama 3.2", **_LLAMA32), "2024-09-25", "llama-guard-3-1b"
    ),
    "llama-guard-3-1b-int4": Published(
        _dense((2048, 12, 32, 8, 6400), "Llama Guard 3 1B INT4", "Llama 3.2", **(_LLAMA32 | {"tied": False})),
        "2024-09-25", "llama-guard-3-1b",
        "Pruned to 12 layers and published in int4 with a head of 20 tokens, which Herder does not read.", runs=False,
    ),
    "llama-guard-3-11b-vision": Published(
        _mllama(_8B31, "Llama Guard 3 11B Vision"), "2024-09-25", "llama-guard-3-vision"
    ),
    "llama-guard-4-12b": Published(_guard4(), "2025-04-29", "llama-guard-4"),
    "r1-distill-llama-8b": Published(
        replace(_8B31, name="DeepSeek R1 Distill Llama 8B", licence="MIT, Llama"), "2025-01-20", "r1"
    ),
    "r1-distill-llama-70b": Published(
        replace(_70B31, name="DeepSeek R1 Distill Llama 70B", licence="MIT, Llama"), "2025-01-20", "r1"
    ),
    "mistral-7b-v0.1": Published(
        _dense(_8B, "Mistral 7B v0.1", "Apache-2.0", **(_MISTRAL | {"rope": Rope()}), window=4096), "2023-09-27",
        "mistral-v1", "Trained on 8192 tokens.",
    ),
    "mistral-7b-v0.2": Published(
        _dense(_8B, "Mistral 7B v0.2", "Apache-2.0", **_MISTRAL), "2023-12", "mistral-v1"
    ),
    "mistral-7b-v0.3": Published(
        _dense(_8B, "Mistral 7B v0.3", "Apache-2.0", **_MISTRAL, vocab=32768), "2024-05-22", "mistral-v3"
    ),
    "mixtral-8x7b": Published(
        _dense(_8B, "Mixtral 8x7B", "Apache-2.0",
               **(_MISTRAL | {"architecture": "mixtral"}), experts=Experts(8, 2, 14336, "softmax")),
        "2023-12-11", "mistral-v1",
    ),
    "mixtral-8x22b": Published(
        _dense((6144, 56, 48, 8, 16384), "Mixtral 8x22B", "Apache-2.0",
               **(_MISTRAL | {"architecture": "mixtral", "context": 65536}), experts=Experts(8, 2, 16384, "softmax")),
        "2024-04", "mistral-v3", "Its Instruct form has 32768 tokens.",
    ),
    "smollm2-135m": Published(
        _dense((576, 30, 9, 3, 1536), "SmolLM2 135M", "Apache-2.0", vocab=49152, context=8192, rope=Rope(theta=1e5),
               tied=True), "2024-11", "chatml",
    ),
    "smollm2-360m": Published(
        _dense((960, 32, 15, 5, 2560), "SmolLM2 360M", "Apache-2.0", vocab=49152, context=8192, rope=Rope(theta=1e5),
               tied=True), "2024-11", "chatml",
    ),
    "smollm2-1.7b": Published(
        _dense((2048, 24, 32, 32, 8192), "SmolLM2 1.7B", "Apache-2.0", vocab=49152, context=8192,
               rope=Rope(theta=1.3e5), tied=True), "2024-11", "chatml",
    ),
}  # fmt: skip


def published(name: str) -> Published:
    """The published model of this name. Raises UsageError, listing the nearest names, for one that is not known."""
    found = CATALOGUE.get(name)
    if found is None:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), CATALOGUE, n=3, cutoff=0.4)
        known = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(CATALOGUE)}"
        raise UsageError(f"there is no published model {name!r}: {known}")
    return found
