"""A model's shape as data. Every generation of the family is a value of ModelConfig; none is a class.

Sources: Hugging Face `config.json` names for the meanings; RoPE scaling formulas from transformers
`modeling_rope_utils.py` and Meta's `llama3/model.py` (apply_scaling).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding.

    kind: default | linear | dynamic | llama3 | yarn | longrope, as in Hugging Face's rope_type.
    original_context: the context before scaling; None: the model's own.
    factors: divisors of each rotation's frequency (head_dim / 2). GGUF's `rope_freqs.weight` comes before the scaling
    of `kind`, and replaces it for llama3, of which it is the result; for longrope they are the short factors, and
    long_factors serve contexts beyond the original one.
    attention_factor: what cos and sin are multiplied by (yarn, longrope); None: computed from the other values.
    The formulas are in herder/weights/rope.py.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    attention_factor: float | None = None
    factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What differs between the layers of one model."""

    rope: bool = True
    window: int | None = None  # sliding window: a key is visible iff q - window < k <= q


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model.

    architecture: the file's own word (`llama`, `mistral`, ...). context: the longest sequence the model was made for.
    """

    architecture: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab: int
    context: int
    norm_eps: float
    rope: Rope
    plan: tuple[LayerPlan, ...]
    tied: bool = False
    attention_bias: bool = False  # biases on q, k, v (and o where the file has one)
    mlp_bias: bool = False
    name: str = ""
    licence: str = ""

    @property
    def parameters(self) -> int:
        """Number of weights in the matrices and norms, tied ones counted once. Biases are not counted."""
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        per_layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        return self.layers * per_layer + self.vocab * self.dim * (1 if self.tied else 2) + self.dim

    def kv_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes of KV cache for `tokens` positions: K and V, every layer, every KV head."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * bytes_per_value
