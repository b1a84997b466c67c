"""How an image is cut into tiles: the canvas it is laid on, the size it is drawn at, and what the model is told of it.

Llama 3.2 Vision and Llama 4 share the rule. A canvas is rows x columns of square tiles, at most max_tiles of them. Of
those that the image fits on without being made smaller, the one that enlarges it least is taken; without any, the one
that shrinks it least; of several equally good ones the smallest. The image is drawn at the upper left, its proportions
kept, enlarged to at most one tile a side. Llama 4 adds the whole image, drawn on one tile without regard for its
proportions, when there are several.

Sources: llama_models llama3/multimodal/image_transform.py and llama4/preprocess.py (get_best_fit,
resize_without_distortion); transformers image_processing_pil_mllama.py and image_processing_llama4.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from herder.core.config import Llama4Vision, MllamaVision


class Tiling(NamedTuple):
    """grid: (rows, columns) of tiles. height, width: pixels at which the image is drawn on it. overview: whether one
    more tile shows all of it (Llama 4)."""

    grid: tuple[int, int]
    height: int
    width: int
    overview: bool

    @property
    def tiles(self) -> int:
        return self.grid[0] * self.grid[1] + self.overview


def tiling(height: int, width: int, vision: MllamaVision | Llama4Vision) -> Tiling:
    """How the image of height x width pixels is cut for this model."""
    grid = canvas(height, width, vision.tile, vision.max_tiles)
    drawn = drawn_size(height, width, grid, vision.tile)
    return Tiling(grid, *drawn, overview=isinstance(vision, Llama4Vision) and grid != (1, 1))


def canvas(height: int, width: int, tile: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) of the canvas.

    On r x c tiles the image is scaled by tile * min(c / width, r / height) = tile * fit(r, c) / (width * height), so
    the integers fit(r, c) compare scales exactly. The references divide in floating point, with the same result for
    sides that images have (MAX_SIDE of decode.py): two different scales are further apart than a float32 resolves.
    """

    def fit(shape: tuple[int, int]) -> int:
        return min(shape[1] * height, shape[0] * width)

    shapes = [(r, c) for r in range(1, max_tiles + 1) for c in range(1, max_tiles // r + 1)]
    enlarging = [fit(shape) for shape in shapes if tile * fit(shape) >= width * height]
    best = min(enlarging) if enlarging else max(map(fit, shapes))
    return min((shape for shape in shapes if fit(shape) == best), key=lambda shape: shape[0] * shape[1])


def drawn_size(height: int, width: int, grid: tuple[int, int], tile: int) -> tuple[int, int]:
    """(height, width) at which the image is drawn on its canvas.

    The quotient is rounded to a double before the product is rounded down, as the references do it: where the product
    is a whole number that can cost one pixel, which the models have learned with.
    """
    target_height = min(max(height, tile), grid[0] * tile)
    target_width = min(max(width, tile), grid[1] * tile)
    by_height, by_width = target_height / height, target_width / width
    if by_width < by_height:
        return max(1, min(math.floor(height * by_width), target_height)), target_width
    return target_height, max(1, min(math.floor(width * by_height), target_width))


def aspect_ratio_id(grid: tuple[int, int], max_tiles: int) -> int:
    """The number under which Llama 3.2 Vision knows a canvas: 1, 2, ... in the order (1,1), (1,2), ..., (2,1), ...

    0 is kept for no image.
    """
    shapes = [(r, c) for r in range(1, max_tiles + 1) for c in range(1, max_tiles // r + 1)]
    return 1 + shapes.index(grid)


def aspect_ratios(max_tiles: int) -> int:
    """How many canvases there are: the largest aspect_ratio_id."""
    return sum(max_tiles // rows for rows in range(1, max_tiles + 1))
