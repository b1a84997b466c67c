"""Cross-attention layers (Llama 3.2 Vision): text tokens read the states of the images they see.

Meta's llama3/multimodal/model.py (CrossAttention, CrossAttentionTransformerBlock): no rotation, a norm with weights on
q and k of each head, and tanh of a gate on what attention and feed-forward network add. A token that sees no image
passes unchanged; transformers adds the attention's output to it all the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from herder.core.config import ModelConfig
from herder.model.attention import attention
from herder.model.feed_forward import FeedForward
from herder.model.images import Sight
from herder.model.norm import RMSNorm
from herder.model.state import Pass


class CrossLayer(nn.Module):
    """A decoder layer with cross-attention. Without images it does nothing."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.cross_attn = CrossAttention(config)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config.dim, config.ffn_dim, config.mlp_bias)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, step: Pass) -> Tensor:
        if step.images is None or not step.images.sights:
            return x
        rows = x.flatten(0, -2).clone()
        for sight in step.images.sights:
            rows[sight.tokens] = self.look(rows[sight.tokens], sight)
        return rows.view_as(x)

    def look(self, x: Tensor, sight: Sight) -> Tensor:
        """x (tokens, dim) after the layer, for tokens that see the same images."""
        sees = sight.visible.any(-1, keepdim=True)
        mask = sight.visible | ~sees  # a softmax over nothing is not a number; the row is thrown away below
        if self.layer not in sight.kv:
            sight.kv[self.layer] = self.cross_attn.keys_values(sight.states)
        out = x + self.cross_attn_attn_gate.tanh() * self.cross_attn(
            self.input_layernorm(x), *sight.kv[self.layer], mask
        )
        out = out + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(out))
        return torch.where(sees, out, x)


class CrossAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, q, bias=False)
        self.k_proj = nn.Linear(config.dim, kv, bias=False)
        self.v_proj = nn.Linear(config.dim, kv, bias=False)
        self.o_proj = nn.Linear(q, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (m, kv_heads, head_dim), of image states (m, dim)."""
        k = self.k_proj(states).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(states).unflatten(-1, (-1, self.head_dim))
        return self.k_norm(k), v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """x (n, dim); k, v: see keys_values; mask: bool (n, m), in which every row has something to see."""
        q = self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        seen = attention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), mask.unsqueeze(0))
        out: Tensor = self.o_proj(seen.squeeze(0).flatten(-2))
        return out
