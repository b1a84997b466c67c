"""A layer of an image encoder: pre-norm self-attention and a GELU network, as both towers have them.

ViT (Dosovitskiy et al. 2021, arXiv:2010.11929); gates as in transformers' modeling_mllama.py, rotation as in
modeling_llama4.py. Attributes have Hugging Face's names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herder.model.attention import attention


class Block(nn.Module):
    """bias: on q, k, v and o. gated: what attention and network add is scaled by tanh of a learned gate."""

    def __init__(
        self, dim: int, heads: int, ffn_dim: int, eps: float, *, bias: bool = False, gated: bool = False
    ) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(dim, eps)
        self.self_attn = Attention(dim, heads, bias)
        self.post_attention_layernorm = nn.LayerNorm(dim, eps)
        self.mlp = Network(dim, ffn_dim, dim, bias=True)
        self.gated = gated
        if gated:
            self.gate_attn = nn.Parameter(torch.zeros(1))
            self.gate_ffn = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, mask: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """x (batch, n, dim). mask, rotation: see Attention."""
        attended = self.self_attn(self.input_layernorm(x), mask, rotation)
        x = x + (self.gate_attn.tanh() * attended if self.gated else attended)
        out = self.mlp(self.post_attention_layernorm(x))
        x = x + (self.gate_ffn.tanh() * out if self.gated else out)
        return x


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias)
        self.k_proj = nn.Linear(dim, dim, bias)
        self.v_proj = nn.Linear(dim, dim, bias)
        self.o_proj = nn.Linear(dim, dim, bias)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Tensor | None) -> Tensor:
        """x (batch, n, dim). mask: bool (n, n), True where a query sees a key; None: it sees all.
        rotation: float32 (n, head_dim / 2, 2), see rotate()."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        out: Tensor = self.o_proj(attention(q, k, v, mask).flatten(-2))
        return out


class Network(nn.Module):
    """fc2(gelu(fc1(x))), the exact GELU."""

    def __init__(self, dim: int, hidden: int, out: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias)
        self.fc2 = nn.Linear(hidden, out, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (batch, n, heads, head_dim) with neighbours 2i and 2i + 1 of each head turned by angle i, in float32.

    rotation: (n, head_dim / 2, 2), cosine and sine. The towers keep the interleaved order of their checkpoints.
    """
    turn = torch.view_as_complex(rotation).unsqueeze(-2)
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
