"""Shapes of the published dense models, by name: what a speed or memory figure needs to know before any download.

Numbers from the models' own configuration files (params.json, config.json). Where Meta's reference code and the
checkpoints disagree the checkpoint wins: RoPE factor 32 for Llama 3.2 1B and 3B, theta 10000 for Llama 1 and 2.
"""

from __future__ import annotations

from typing import NamedTuple

from herder.core.config import LayerPlan, ModelConfig, Rope
from herder.core.errors import UsageError

_LLAMA3 = Rope(theta=5e5)
_LLAMA31 = Rope(theta=5e5, kind="llama3", factor=8.0, original_context=8192)
_LLAMA32 = Rope(theta=5e5, kind="llama3", factor=32.0, original_context=8192)


class Shape(NamedTuple):
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab: int
    context: int
    rope: Rope = Rope()
    tied: bool = False
    window: int | None = None
    norm_eps: float = 1e-5

    def config(self, name: str) -> ModelConfig:
        return ModelConfig(
            architecture="llama",
            layers=self.layers,
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.dim // self.heads,
            ffn_dim=self.ffn_dim,
            vocab=self.vocab,
            context=self.context,
            norm_eps=self.norm_eps,
            rope=self.rope,
            plan=(LayerPlan(window=self.window),) * self.layers,
            tied=self.tied,
            name=name,
        )


SHAPES: dict[str, Shape] = {
    "llama-7b": Shape(4096, 32, 32, 32, 11008, 32000, 2048, norm_eps=1e-6),
    "llama-13b": Shape(5120, 40, 40, 40, 13824, 32000, 2048, norm_eps=1e-6),
    "llama-33b": Shape(6656, 60, 52, 52, 17920, 32000, 2048, norm_eps=1e-6),
    "llama-65b": Shape(8192, 80, 64, 64, 22016, 32000, 2048),
    "llama-2-7b": Shape(4096, 32, 32, 32, 11008, 32000, 4096),
    "llama-2-13b": Shape(5120, 40, 40, 40, 13824, 32000, 4096),
    "llama-2-70b": Shape(8192, 80, 64, 8, 28672, 32000, 4096),
    "code-llama-34b": Shape(8192, 48, 64, 8, 22016, 32000, 16384, Rope(theta=1e6)),
    "llama-3-8b": Shape(4096, 32, 32, 8, 14336, 128256, 8192, _LLAMA3),
    "llama-3-70b": Shape(8192, 80, 64, 8, 28672, 128256, 8192, _LLAMA3),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 14336, 128256, 131072, _LLAMA31),
    "llama-3.1-70b": Shape(8192, 80, 64, 8, 28672, 128256, 131072, _LLAMA31),
    "llama-3.1-405b": Shape(16384, 126, 128, 8, 53248, 128256, 131072, _LLAMA31),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 8192, 128256, 131072, _LLAMA32, tied=True),
    "llama-3.2-3b": Shape(3072, 28, 24, 8, 8192, 128256, 131072, _LLAMA32, tied=True),
    "llama-3.3-70b": Shape(8192, 80, 64, 8, 28672, 128256, 131072, _LLAMA31),
    "mistral-7b-v0.1": Shape(4096, 32, 32, 8, 14336, 32000, 32768, window=4096),
    "mistral-7b-v0.3": Shape(4096, 32, 32, 8, 14336, 32768, 32768, Rope(theta=1e6)),
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152, 8192, Rope(theta=1e5), tied=True),
    "smollm2-360m": Shape(960, 32, 15, 5, 2560, 49152, 8192, Rope(theta=1e5), tied=True),
    "smollm2-1.7b": Shape(2048, 24, 32, 32, 8192, 49152, 8192, Rope(theta=1.3e5), tied=True),
}


def shape_config(name: str) -> ModelConfig:
    """The configuration of a published model. Raises UsageError, listing the names, for one that is not known."""
    shape = SHAPES.get(name)
    if shape is None:
        raise UsageError(f"there is no shape {name!r}: known are {', '.join(SHAPES)}")
    return shape.config(name)
