"""A model's shape as data. Every generation of the family is a value of ModelConfig; none is a class.

Sources: Hugging Face `config.json` names for the meanings; RoPE scaling formulas from transformers
`modeling_rope_utils.py` and Meta's `llama3/model.py` (apply_scaling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    """What differs between the layers of one model. At most one of window and chunk is set.

    window: sliding window: a key is visible iff q - window < k <= q.
    chunk: chunked attention (Llama 4): a key is visible iff k <= q and k // chunk == q // chunk.
    qk_norm: q and k of each head are divided by their root mean square (norm_eps inside the root, no weight), after
    the rotation.
    temperature: q is scaled by ModelConfig.temperature.
    experts: the feed-forward network is ModelConfig.experts, not the dense one.
    cross: cross-attention to the images' states in place of self-attention (Llama 3.2 Vision); skipped without images.
    """

    rope: bool = True
    window: int | None = None
    chunk: int | None = None
    qk_norm: bool = False
    temperature: bool = False
    experts: bool = False
    cross: bool = False

    @property
    def local(self) -> bool:
        """Whether positions go out of sight as the sequence grows."""
        return self.window is not None or self.chunk is not None

    def first_visible(self, position: int) -> int:
        """The first position that a query at `position` sees."""
        if self.window is not None:
            return max(0, position - self.window + 1)
        return 0 if self.chunk is None else position // self.chunk * self.chunk


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in place of the dense feed-forward network.

    router: "softmax" (Mixtral): softmax over all router logits in float32, the `active` best renormalised to 1, the
    experts' OUTPUTS weighted and summed. "sigmoid" (Llama 4): the best `active` logits, each expert's INPUT multiplied
    by the sigmoid of its logit, outputs summed, and the shared expert's output of the unscaled input added.
    ffn_dim: of one expert. shared_ffn_dim: of the shared expert, 0 without one.
    Ties between router logits go to the lower expert number.
    """

    count: int
    active: int
    ffn_dim: int
    router: Literal["softmax", "sigmoid"]
    shared_ffn_dim: int = 0


@dataclass(frozen=True, slots=True)
class Temperature:
    """Attention temperature (Llama 4, layers without RoPE): q *= 1 + scale * ln(floor((position + 1) / floor) + 1)."""

    floor: int = 8192
    scale: float = 0.1


@dataclass(frozen=True, slots=True)
class MllamaVision:
    """The image encoder of Llama 3.2 Vision. tile, patch: pixels a side. taps: the layers whose INPUT is kept beside
    the last state (Meta's reading, transformers before 4.54). The projector maps dim * (1 + len(taps)) to the text's
    dim, with bias."""

    dim: int
    layers: int
    global_layers: int
    heads: int
    ffn_dim: int
    patch: int
    tile: int
    max_tiles: int
    taps: tuple[int, ...]
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class Llama4Vision:
    """The image encoder of Llama 4. shuffle: pixel shuffle ratio. projector_dim: width inside the adapter's MLP;
    output_dim: what the multi-modal projector takes to the text's dim. max_tiles: of an image, the global tile not
    counted."""

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    patch: int
    tile: int
    projector_dim: int
    output_dim: int
    shuffle: float = 0.5
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_tiles: int = 16

    @property
    def tokens_per_tile(self) -> int:
        """Patch tokens that stand for one tile in the prompt."""
        return int((self.tile // self.patch) ** 2 * self.shuffle**2)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model.

    architecture: the file's own word (`llama`, `mistral`, ...). context: the longest sequence the model was made for.
    ffn_dim: of the dense feed-forward networks. layers counts the cross-attention layers too.
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
    experts: Experts | None = None
    temperature: Temperature | None = None
    vision: MllamaVision | Llama4Vision | None = None
    embedding_rows: int | None = None  # rows of the embedding where it has more than `vocab` (Llama 3.2 Vision)
    image_token: int | None = None  # the id whose embeddings an image replaces, or that marks where it is seen

    @property
    def parameters(self) -> int:
        """Number of weights of the language model's matrices and norms, tied ones counted once. Biases and the vision
        tower are not counted."""
        return self._parameters(self.experts.count if self.experts else 0)

    @property
    def active_parameters(self) -> int:
        """Weights that one token's computation reads: of the experts, the active ones only."""
        return self._parameters(self.experts.active if self.experts else 0)

    def _parameters(self, experts: int) -> int:
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        total = self.dim + (self.embedding_rows or self.vocab) * self.dim + (0 if self.tied else self.vocab * self.dim)
        for layer in self.plan:
            total += attention + 2 * self.dim + (2 * self.head_dim + 2 if layer.cross else 0)
            if layer.experts and self.experts is not None:
                moe = self.experts
                total += self.dim * (3 * moe.ffn_dim * experts + 3 * moe.shared_ffn_dim + moe.count)
            else:
                total += 3 * self.dim * self.ffn_dim
        return total

    @property
    def local(self) -> LayerPlan | None:
        """The plan of the layers that see a bounded reach only (all of a model's have the same), None without any."""
        return next((layer for layer in self.plan if layer.local), None)

    def kv_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes of KV cache for `tokens` positions if every self-attention layer kept all of them: K and V, every KV
        head. cache/plan.py knows what layers of bounded reach save."""
        layers = sum(not layer.cross for layer in self.plan)
        return layers * self.kv_layer_bytes(tokens, bytes_per_value)

    def kv_layer_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes of KV cache for `tokens` positions of one layer."""
        return 2 * self.kv_heads * self.head_dim * tokens * bytes_per_value
