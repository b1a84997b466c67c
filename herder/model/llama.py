"""The decoder: every generation of Llama, on one device. What differs between layers is their LayerPlan.

Touvron et al. 2023 (arXiv:2302.13971) and its successors: pre-norm RMSNorm, rotary positions, grouped-query attention,
SwiGLU or a mixture of experts. Attributes are named so that the parameters of `state_dict()` have their canonical names
(herder/weights/names.py). State is an argument: what was said before comes as a Cache (state.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from herder.core.config import LayerPlan, ModelConfig
from herder.model.attention import attention
from herder.model.cross import CrossLayer
from herder.model.feed_forward import FeedForward
from herder.model.images import Images
from herder.model.moe import MixtureOfExperts
from herder.model.norm import RMSNorm, normalized
from herder.model.rope import Rope, rotate
from herder.model.state import Cache, Pass
from herder.model.vision.encoder import make_projector, make_tower


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
        self.layers = nn.ModuleList(
            CrossLayer(config, layer) if plan.cross else Layer(config, layer) for layer, plan in enumerate(config.plan)
        )
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
