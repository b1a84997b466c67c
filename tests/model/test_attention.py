"""Which keys are seen against the plan's own words, and attention against a loop over heads and tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from herder.core.config import LayerPlan
from herder.model.attention import attention, visible

pytestmark = pytest.mark.oracle

PLANS = [LayerPlan(), LayerPlan(window=5), LayerPlan(chunk=6), LayerPlan(window=1), LayerPlan(chunk=64)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_query_sees_what_its_plan_says(plan: LayerPlan) -> None:
    queries, keys = torch.arange(7, 20), torch.arange(25)
    seen = visible(plan, queries, keys)
    for row, position in zip(seen.tolist(), range(7, 20), strict=True):
        assert [key for key, it in enumerate(row) if it] == list(range(plan.first_visible(position), position + 1))


def looped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """One query of one head at a time, in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for h in range(q.shape[2]):
                keys = k[b, mask[b, i], h // group].double()
                weights = (keys @ q[b, i, h].double() / math.sqrt(q.shape[3])).softmax(0)
                out[b, i, h] = weights @ v[b, mask[b, i], h // group].double()
    return out.float()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_is_a_softmax_over_visible_keys(heads: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    q = torch.randn(2, 7, heads, 8, generator=generator)
    k, v = (torch.randn(2, 7, kv_heads, 8, generator=generator) for _ in range(2))
    positions = torch.arange(7)
    window = visible(LayerPlan(window=3), positions, positions)
    each = torch.stack((window, visible(LayerPlan(), positions, positions)))
    torch.testing.assert_close(attention(q, k, v, each), looped(q, k, v, each))
    torch.testing.assert_close(attention(q, k, v, window), looped(q, k, v, window.expand(2, -1, -1)))
    torch.testing.assert_close(attention(q, k, v, causal=True), looped(q, k, v, each[1:].expand(2, -1, -1)))
    torch.testing.assert_close(attention(q[:, -1:], k, v), looped(q[:, -1:], k, v, each[1:, -1:].expand(2, -1, -1)))
