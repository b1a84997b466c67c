"""Attention: which keys a query sees, and the softmax over them.

Vaswani et al. 2017 (arXiv:1706.03762), with groups of query heads that share a key head (GQA, Ainslie et al. 2023,
arXiv:2305.13245), computed by PyTorch's scaled_dot_product_attention, which accumulates in float32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from herder.core.config import LayerPlan


def visible(plan: LayerPlan, queries: Tensor, keys: Tensor) -> Tensor:
    """Which keys each query sees: bool (..., n, m) for positions (..., n) of queries and (..., m) of keys."""
    query, key = queries.unsqueeze(-1), keys.unsqueeze(-2)
    seen = key <= query
    if plan.window is not None:
        seen = seen & (key > query - plan.window)
    if plan.chunk is not None:
        seen = seen & (key // plan.chunk == query // plan.chunk)
    return seen


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, head by head: (batch, n, heads, head_dim), like q.

    q: (batch, n, heads, head_dim). k, v: (batch, m, kv_heads, head_dim); key head g serves the query heads
    g * heads / kv_heads and following. mask: bool (n, m) or (batch, n, m), True where a query sees a key; every query
    must see one. causal: instead of a mask, query i sees keys 0..i; n must equal m.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and mask is not None and q.device.type == "cuda":
        # Of CUDA's fused kernels, the one that takes a mask wants as many key heads as query heads.
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        groups = 1
    if mask is not None:
        # The same for all heads. Of four axes: with three, the CPU's fused kernel leaves it to a slower one.
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1)
    return out.transpose(1, 2)
