"""A mixture of experts in place of the feed-forward network: Mixtral's and Llama 4's.

Mixtral (Jiang et al. 2024, arXiv:2401.04088) weights the experts' outputs by a softmax; Llama 4 (Meta's
`llama4/moe.py`) weights the expert's input by a sigmoid and adds an expert that every token shares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from herder.core.config import Experts as ExpertsConfig
from herder.model.feed_forward import FeedForward


class Experts(nn.ModuleList):
    """The experts. Only those that some token was sent to are computed, each once, over its tokens together."""

    def forward(self, x: Tensor, chosen: Tensor, scores: Tensor, scale_input: bool) -> Tensor:
        """Sum over each token's experts: (n, dim).

        x: (n, dim). chosen: (n, active) expert numbers. scores: (n, active) in x's dtype, which multiply the experts'
        inputs, or their outputs.
        """
        out = torch.zeros_like(x)
        for number in sorted(set(chosen.flatten().tolist())):
            token, place = (chosen == number).nonzero(as_tuple=True)
            score = scores[token, place].unsqueeze(-1)
            expert, rows = self[number], x[token]
            out = out.index_add(0, token, expert(rows * score) if scale_input else expert(rows) * score)
        return out


class MixtureOfExperts(nn.Module):
    """Router, experts, and the shared expert where there is one."""

    def __init__(self, dim: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(dim, config.count, bias=False)
        self.experts = Experts(FeedForward(dim, config.ffn_dim) for _ in range(config.count))
        self.shared_expert = FeedForward(dim, config.shared_ffn_dim) if config.shared_ffn_dim else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        chosen, scores = route(self.router(rows).float(), self.config)
        out = self.experts(rows, chosen, scores.to(x.dtype), self.config.router == "sigmoid")
        if self.shared_expert is not None:
            out = out + self.shared_expert(rows)
        mixed: Tensor = out.view_as(x)
        return mixed


def route(logits: Tensor, config: ExpertsConfig) -> tuple[Tensor, Tensor]:
    """Expert numbers and scores, each (n, active), from float32 router logits (n, count); ties to the lower number."""
    best, chosen = logits.sort(dim=-1, descending=True, stable=True)
    best, chosen = best[:, : config.active], chosen[:, : config.active]
    # A softmax over all experts whose best are renormalised to 1 is the softmax over the best.
    return chosen, best.sigmoid() if config.router == "sigmoid" else best.softmax(-1)
