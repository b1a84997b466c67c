"""The image encoder of Llama 4: each tile by itself -> the rows that stand in the prompt for its patch tokens.

Meta's llama4/vision (embedding.py, encoder.py) and transformers' modeling_llama4.py (Llama4VisionModel), which agree.
Attributes have Hugging Face's names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herder.core.config import Llama4Vision
from herder.model.vision.block import Block, Network


class Llama4Tower(nn.Module):
    def __init__(self, vision: Llama4Vision) -> None:
        super().__init__()
        self.vision = vision
        side = vision.tile // vision.patch
        self.patch_embedding = PatchEmbedding(vision.patch, vision.dim)
        self.class_embedding = nn.Parameter(torch.zeros(vision.dim))
        self.positional_embedding_vlm = nn.Parameter(torch.zeros(side**2 + 1, vision.dim))
        self.layernorm_pre = nn.LayerNorm(vision.dim)
        self.model = Encoder(vision)
        self.layernorm_post = nn.LayerNorm(vision.dim)
        self.vision_adapter = Adapter(vision)
        # On the CPU even where the model is made on `meta`: no file holds these numbers.
        self.register_buffer("rotation", rotation(vision, torch.device("cpu")), persistent=False)

    rotation: Tensor

    def forward(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """(tiles * tokens_per_tile, output_dim) for pixels (tiles, 3, tile, tile). Where the tiles lie is not used:
        the prompt says it."""
        x = self.patch_embedding(pixels)
        x = torch.cat((x, self.class_embedding.expand(len(x), 1, -1)), dim=1)
        x = self.layernorm_pre(x + self.positional_embedding_vlm)
        for layer in self.model.layers:
            x = layer(x, rotation=self.rotation)
        x = self.layernorm_post(x)[:, :-1]  # without the class token
        out: Tensor = self.vision_adapter(x)
        return out.flatten(0, 1)


class PatchEmbedding(nn.Module):
    """Patches, row by row, each a vector (channel, y, x)."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(3 * patch**2, dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.linear(F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2))
        return out


class Encoder(nn.Module):
    def __init__(self, vision: Llama4Vision) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(vision.dim, vision.heads, vision.ffn_dim, vision.norm_eps, bias=True) for _ in range(vision.layers)
        )


class Adapter(nn.Module):
    """Pixel shuffle, then gelu(fc2(gelu(fc1(x)))). The projector after it belongs to the language model."""

    def __init__(self, vision: Llama4Vision) -> None:
        super().__init__()
        self.shuffle = vision.shuffle
        shuffled = round(vision.dim / vision.shuffle**2)
        self.mlp = Network(shuffled, vision.projector_dim, vision.output_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.mlp(pixel_shuffle(x, self.shuffle)))


def pixel_shuffle(x: Tensor, ratio: float) -> Tensor:
    """(tiles, n * ratio^2, dim / ratio^2): squares of 1 / ratio by 1 / ratio patches side by side in one vector.

    x: (tiles, n, dim), n patches of a square row by row.
    """
    size, tiles = round(1 / ratio), len(x)
    side = round(x.shape[1] ** 0.5)
    small = side // size
    squares = x.view(tiles, small, size, small, size, -1).transpose(2, 3)
    return squares.reshape(tiles, small * small, -1)


def rotation(vision: Llama4Vision, device: torch.device) -> Tensor:
    """Cosine and sine for every token of a tile: float32 (patches + 1, head_dim / 2, 2).

    Of a head's rotations, the first half turn with the column and the second half with the row, both counted from 1;
    the class token, which is the last, is not turned.
    """
    side, head_dim = vision.tile // vision.patch, vision.dim // vision.heads
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, device=device)[: half // 2].float() / half
    frequencies = 1 / vision.rope_theta**exponents
    patch = torch.arange(side**2, device=device)
    column, row = (patch % side + 1).unsqueeze(1), (patch // side + 1).unsqueeze(1)
    angles = F.pad(torch.cat((column * frequencies, row * frequencies), dim=1), (0, 0, 0, 1))
    return torch.stack((angles.cos(), angles.sin()), dim=-1)
