"""The image encoder of Llama 3.2 Vision: 1 to 4 tiles -> states for cross-attention.

Meta's llama3/multimodal/model.py (VisionEncoder) decides; transformers' modeling_mllama.py is the same but for the
taps: it has kept the layers' outputs since 4.54, where Meta and the earlier ones keep their inputs. Attributes have
Hugging Face's names, those of the published files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herder.core.config import MllamaVision
from herder.images.tiles import aspect_ratio_id, aspect_ratios
from herder.model.vision.block import Block


class MllamaTower(nn.Module):
    """All tiles are encoded together: they see each other, and every image has max_tiles of them.

    Those that an image lacks are zeros, and each tile's tokens, a square and one, are padded to a multiple of 8, which
    they never are. Padding does not see padding; but what is real does see padding, as in training.
    """

    def __init__(self, vision: MllamaVision) -> None:
        super().__init__()
        self.vision = vision
        dim = vision.dim
        self.patch_embedding = nn.Conv2d(3, dim, vision.patch, vision.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(dim))
        self.pre_tile_positional_embedding = TileEmbedding(vision)
        self.gated_positional_embedding = PositionEmbedding(vision)
        self.post_tile_positional_embedding = TileEmbedding(vision)
        self.layernorm_pre = nn.LayerNorm(dim)
        self.layernorm_post = nn.LayerNorm(dim)
        self.transformer = Encoder(vision, vision.layers, gated=False)
        self.global_transformer = Encoder(vision, vision.global_layers, gated=True)

    def forward(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """(tiles * tokens, dim * (1 + taps)) of one image, pixels (tiles, 3, tile, tile) cut into `grid`.

        A tile's tokens are the class token and the patches, row by row. Their values are the last state and then, for
        each of its dimensions, that of all taps.
        """
        vision, tiles = self.vision, len(pixels)
        canvas = torch.tensor(aspect_ratio_id(grid, vision.max_tiles), device=pixels.device)
        pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, vision.max_tiles - tiles))
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = self.pre_tile_positional_embedding(x, canvas)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), dim=1)
        x = self.layernorm_pre(self.gated_positional_embedding(x, canvas))

        tokens = x.shape[1]
        x = F.pad(x, (0, 0, 0, 8 - tokens % 8))
        mask = self._mask(tiles, tokens, x)
        tiled = x.shape[:2]
        x, taps = self.transformer(x.flatten(0, 1).unsqueeze(0), mask, vision.taps)
        x = self.post_tile_positional_embedding(self.layernorm_post(x).unflatten(1, tiled).squeeze(0), canvas)
        x, _ = self.global_transformer(x.flatten(0, 1).unsqueeze(0), mask)
        x = torch.cat((x, torch.stack(taps, dim=-1).flatten(-2)), dim=-1) if taps else x
        out: Tensor = x.squeeze(0).view(*tiled, -1)[:tiles, :tokens].flatten(0, 1)
        return out

    @staticmethod
    def _mask(tiles: int, tokens: int, x: Tensor) -> Tensor:
        """Bool (n, n): False where both query and key are padding."""
        real = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        real[:tiles, :tokens] = True
        real = real.flatten()
        return real.unsqueeze(1) | real


class TileEmbedding(nn.Module):
    """What tells a tile's tokens where on the canvas it lies; scaled by tanh of a gate."""

    def __init__(self, vision: MllamaVision) -> None:
        super().__init__()
        self.shape = (vision.max_tiles, 1, vision.dim)
        self.embedding = nn.Embedding(1 + aspect_ratios(vision.max_tiles), vision.max_tiles * vision.dim)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, canvas: Tensor) -> Tensor:
        """x (tiles, tokens, dim); canvas: its aspect_ratio_id."""
        out: Tensor = x + self.embedding(canvas).view(self.shape) * self.gate.tanh()
        return out


class PositionEmbedding(nn.Module):
    """A token's place in its tile, and in its tile of the canvas; a gate mixes the two."""

    def __init__(self, vision: MllamaVision) -> None:
        super().__init__()
        tokens = (vision.tile // vision.patch) ** 2 + 1
        self.shape = (vision.max_tiles, tokens, vision.dim)
        self.embedding = nn.Parameter(torch.zeros(tokens, vision.dim))
        self.tile_embedding = nn.Embedding(1 + aspect_ratios(vision.max_tiles), vision.max_tiles * tokens * vision.dim)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, canvas: Tensor) -> Tensor:
        """x (tiles, tokens, dim); canvas: its aspect_ratio_id."""
        gate = self.gate.tanh()
        out: Tensor = x + (1 - gate) * self.embedding + gate * self.tile_embedding(canvas).view(self.shape)
        return out


class Encoder(nn.Module):
    def __init__(self, vision: MllamaVision, layers: int, gated: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(vision.dim, vision.heads, vision.ffn_dim, vision.norm_eps, gated=gated) for _ in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor, taps: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """x (1, n, dim) after all layers, and the inputs of the layers `taps`."""
        kept = []
        for number, layer in enumerate(self.layers):
            if number in taps:
                kept.append(x)
            x = layer(x, mask)
        return x, kept
