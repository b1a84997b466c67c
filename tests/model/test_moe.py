"""The mixture of experts against dense twins, and what it leaves out."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from herder.core.config import Experts
from herder.model.moe import MixtureOfExperts, route

pytestmark = pytest.mark.oracle

Router = Literal["softmax", "sigmoid"]


def mixture(router: Router, active: int, shared: int = 0, count: int = 4) -> MixtureOfExperts:
    torch.manual_seed(active)
    return MixtureOfExperts(16, Experts(count, active, 24, router, shared))


def dense(moe: MixtureOfExperts, x: Tensor) -> Tensor:
    """Every expert over every token; those that were not chosen weigh nothing."""
    logits = moe.router(x)
    best = logits.topk(moe.config.active, -1)
    if moe.config.router == "softmax":
        weights = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))
        return sum(weights[:, e, None] * expert(x) for e, expert in enumerate(moe.experts))
    weights = torch.zeros_like(logits).scatter(-1, best.indices, best.values.sigmoid())
    out = sum(expert(weights[:, e, None] * x) for e, expert in enumerate(moe.experts))  # an expert of 0 is 0
    return out if moe.shared_expert is None else out + moe.shared_expert(x)


@pytest.mark.parametrize(
    ("router", "active", "shared"), [("softmax", 2, 0), ("softmax", 4, 0), ("sigmoid", 1, 24), ("sigmoid", 2, 24)]
)
def test_agrees_with_the_dense_twin(router: Router, active: int, shared: int) -> None:
    moe = mixture(router, active, shared)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(moe(x), dense(moe, x.flatten(0, 1)).view_as(x))


def test_equal_experts_are_one_feed_forward_network() -> None:
    moe = mixture("softmax", 2)
    for expert in moe.experts[1:]:
        expert.load_state_dict(moe.experts[0].state_dict())
    x = torch.randn(9, 16)
    torch.testing.assert_close(moe(x), moe.experts[0](x))


def test_only_the_chosen_experts_are_computed_each_once() -> None:
    moe = mixture("softmax", 2, count=8)
    calls: list[tuple[int, int]] = []
    for number, expert in enumerate(moe.experts):
        expert.register_forward_hook(lambda m, x, y, number=number: calls.append((number, len(x[0]))))
    x = torch.randn(3, 16)
    chosen, _ = route(moe.router(x), moe.config)
    moe(x)
    assert calls == [(e, int((chosen == e).sum())) for e in range(8) if (chosen == e).any()]
    assert sum(rows for _, rows in calls) == 6


def test_ties_go_to_the_lower_expert() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    chosen, scores = route(logits, Experts(4, 2, 8, "softmax"))
    assert chosen.tolist() == [[1, 2], [0, 1]]
    assert scores.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_softmax_over_the_best_is_the_renormalised_softmax_over_all() -> None:
    logits = torch.randn(50, 8)
    _, scores = route(logits, Experts(8, 3, 8, "softmax"))
    best = logits.softmax(-1).topk(3, -1).values
    torch.testing.assert_close(scores, best / best.sum(-1, keepdim=True))


def test_gradients_reach_router_and_experts() -> None:
    moe = mixture("sigmoid", 1, 24)
    moe(torch.randn(64, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moe.parameters())
