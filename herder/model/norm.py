"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467): in float32, cast back, then the weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """normalized(x) times a weight per column."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normalized(x, self.eps) * self.weight


def normalized(x: Tensor, eps: float) -> Tensor:
    """x divided by its root mean square over the last axis, computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
