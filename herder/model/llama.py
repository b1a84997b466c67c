"""The decoder: every generation of Llama, on one device. What differs between layers is their LayerPlan.

Touvron et al. 2023 (arXiv:2302.13971) and its successors: pre-norm RMSNorm, rotary positions, grouped-query attention,
SwiGLU or a mixture of experts. Attributes are named so that the parameters of `state_dict()` have their canonical names
(herder/weights/names.py). State is an argument: what was said before comes as a Cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herder.core.config import LayerPlan, ModelConfig
from herder.model.attention import attention, visible
from herder.model.feed_forward import FeedForward
from herder.model.images import Images
from herder.model.moe import MixtureOfExperts
from herder.model.rope import Rope, rotate


class Cache(Protocol):
    """Keys and values of earlier tokens. It knows which sequence each token of the batch belongs to."""

    def attend(self, layer: int, plan: LayerPlan, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keeps k and v (tokens, kv_heads, head_dim) of the batch's tokens, and gives the attention of q (tokens,
        heads, head_dim) over the keys of its sequence that the plan lets it see, in q's shape."""
        ...


@dataclass(slots=True)
class Pass:
    """What all layers of one forward pass share. rotation: (cos, sin), see Rope. temperature: (..., 1, 1) or None.
    causal: positions are 0, 1, 2, ..."""

    positions: Tensor
    causal: bool
    rotation: tuple[Tensor, Tensor]
    temperature: Tensor | None
    cache: Cache | None
    images: Images | None
    masks: dict[tuple[int | None, int | None], Tensor] = field(default_factory=dict)

    def mask(self, plan: LayerPlan) -> Tensor | None:
        """visible() among the pass's own tokens, made once for layers of equal reach; None where it is just causal."""
        if self.causal and not plan.local:
            return None
        reach = plan.window, plan.chunk
        if reach not in self.masks:
            self.masks[reach] = visible(plan, self.positions, self.positions)
        return self.masks[reach]


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019 (arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normalized(x, self.eps) * self.weight


def normalized(x: Tensor, eps: float) -> Tensor:
    """x divided by its root mean square over the last axis, computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


class Attend(nn.Module):
    """The attention of q over the cache's keys, or over those of the pass itself."""

    def __init__(self, layer: int, plan: LayerPlan) -> None:
        super().__init__()
        self.layer, self.plan = layer, plan

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Pass) -> Tensor:
        if step.cache is not None:
            return step.cache.attend(self.layer, self.plan, q, k, v)
        mask = step.mask(self.plan)
        return attention(q, k, v, mask, causal=mask is None)


class SelfAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.plan, self.eps, self.head_dim = config.plan[layer], config.norm_eps, config.head_dim
        q, kv, bias = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(config.dim, q, bias)
        self.k_proj = nn.Linear(config.dim, kv, bias)
        self.v_proj = nn.Linear(config.dim, kv, bias)
        self.o_proj = nn.Linear(q, config.dim, bias)
        self.attend = Attend(layer, self.plan)

    def forward(self, x: Tensor, step: Pass) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if self.plan.rope:
            q, k = rotate(q, *step.rotation), rotate(k, *step.rotation)
        if self.plan.qk_norm:
            q, k = normalized(q, self.eps), normalized(k, self.eps)
        if self.plan.temperature and step.temperature is not None:
            q = (q * step.temperature).to(q.dtype)
        out: Tensor = self.o_proj(self.attend(q, k, v, step).flatten(-2))
        return out


class Layer(nn.Module):
    """A decoder layer with self-attention."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp: nn.Module
        if config.plan[layer].experts:
            assert config.experts is not None
            self.mlp = MixtureOfExperts(config.dim, config.experts)
        else:
            self.mlp = FeedForward(config.dim, config.ffn_dim, config.mlp_bias)

    def forward(self, x: Tensor, step: Pass) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Tokens -> hidden states after the final norm."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.embedding_rows or config.vocab, config.dim)
        self.layers = nn.ModuleList(make_layer(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.rope = Rope(config, context)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        images: Images | None = None,
    ) -> Tensor:
        """(..., dim) for tokens and positions (...), int64.

        Without a cache, tokens are (batch, length), whole sequences that see only themselves; positions, (length) or
        (batch, length), count from 0 if not given. With one they are (tokens), those of all its sequences together.
        """
        causal = positions is None
        if positions is None:
            positions = torch.arange(tokens.shape[-1], device=tokens.device)
        x = self.embed_tokens(tokens)
        if images is not None:
            x = images.replace(x)
        step = Pass(positions, causal, self.rope(positions), self.temperature(positions), cache, images)
        for layer in self.layers:
            x = layer(x, step)
        out: Tensor = self.norm(x)
        return out

    def temperature(self, positions: Tensor) -> Tensor | None:
        """What q is multiplied by in layers whose plan says so (Llama 4): float32, 1 up to the floor."""
        if self.config.temperature is None:
            return None
        floor, scale = self.config.temperature.floor, self.config.temperature.scale
        steps = ((positions + 1) // floor).float()
        return (1 + scale * torch.log(steps + 1))[..., None, None]


def make_layer(config: ModelConfig, layer: int) -> nn.Module:
    """Called with (x, Pass), a layer gives x again. Those that cross-attend read Pass.images."""
    if config.plan[layer].cross:
        from herder.model.cross import CrossLayer

        return CrossLayer(config, layer)
    return Layer(config, layer)


class Llama(nn.Module):
    """A language model: decoder and head. context: the longest sequence it will be asked for, tokens."""

    def __init__(self, config: ModelConfig, context: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, context or config.context)
        self.lm_head = nn.Linear(config.dim, config.vocab, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        if config.vision is not None:
            from herder.model.vision.encoder import make_projector, make_tower

            self.vision_model = make_tower(config.vision)
            self.multi_modal_projector = make_projector(config.vision, config.dim)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        images: Images | None = None,
    ) -> Tensor:
        """Logits after each token: float32 (..., vocab). The arguments are the Decoder's."""
        return self.logits(self.model(tokens, positions, cache, images))

    def see(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """What an image is to the decoder, (m, dim): the rows in place of its patch tokens' embeddings (Llama 4), or
        the states that cross-attention reads (Llama 3.2 Vision). pixels, grid: see core.request.Image."""
        out: Tensor = self.multi_modal_projector(self.vision_model(pixels, grid))
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 (..., vocab) of the decoder's hidden states (..., dim)."""
        out: Tensor = self.lm_head(hidden)
        return out.float()
