"""Rotary position embedding in PyTorch: the angles of positions, and the rotation of heads in half-split order.

RoFormer (Su et al. 2021, arXiv:2104.09864). Frequencies, scaling included, come from herder/weights/rope.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from herder.core.config import ModelConfig
from herder.weights.rope import inv_freq


class Rope(nn.Module):
    """Positions -> cos and sin of each rotation's angle, times the attention factor (YaRN, LongRoPE).

    context: the longest sequence, which fixes the frequencies of dynamic NTK and LongRoPE.
    """

    inv_freq: Tensor  # (head_dim / 2,) float32, radians per position

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        frequencies, self.factor = inv_freq(config, context)
        # On the CPU even where the model is made on `meta`: no file holds these numbers.
        self.register_buffer("inv_freq", torch.tensor(frequencies, device="cpu"), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (...) -> cos, sin, each float32 (..., head_dim / 2)."""
        angles = positions.unsqueeze(-1).float() * self.inv_freq
        return angles.cos() * self.factor, angles.sin() * self.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., heads, head_dim) with rows i and i + head_dim / 2 of each head turned by angle i, in float32.

    cos, sin: (..., head_dim / 2), the same for all heads.
    """
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
