"""An image -> what the vision tower takes: tiles of normalized float32 pixels.

Resized with Pillow's bilinear filter, which widens with the reduction (antialiasing): the one that Meta's preprocessing
and transformers' Pillow back end of Mllama use, so the result is theirs. transformers resizes for Llama 4 with
torchvision, whose weights are rounded differently: single pixels differ by 1/255 (tests/images/test_prepare.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from herder.core.config import Llama4Vision, MllamaVision
from herder.images.decode import pillow, read_rgb
from herder.images.tiles import tiling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Mean and standard deviation of the pixels (0 to 1) by channel, from the models' preprocessor_config.json.
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Prepared(NamedTuple):
    """pixels: float32, contiguous, (tiles, 3, tile, tile), row by row; Llama 4's overview is the last.
    grid: (rows, columns) of the tiles, the overview not among them. key: SHA-256 over both.
    tile_tokens: prompt tokens that stand for one tile; 0 where one token stands for the whole image (Llama 3.2)."""

    pixels: NDArray[np.float32]
    grid: tuple[int, int]
    key: bytes
    tile_tokens: int


class Preparer:
    """prepare() for one model, from any thread, that remembers the last few images: a conversation sends its own again
    with every turn."""

    def __init__(self, vision: MllamaVision | Llama4Vision, keep: int = 8) -> None:
        self._vision, self._keep = vision, keep
        self._known: OrderedDict[bytes, Prepared] = OrderedDict()  # by the digest of the file
        self._lock = threading.Lock()

    def __call__(self, data: bytes, where: str = "image") -> Prepared:
        digest = hashlib.sha256(data).digest()
        with self._lock:
            found = self._known.get(digest)
        if found is None:
            found = prepare(data, self._vision, where)
        with self._lock:
            self._known[digest] = found
            self._known.move_to_end(digest)
            if len(self._known) > self._keep:
                self._known.popitem(last=False)
        return found


def prepare(data: bytes, vision: MllamaVision | Llama4Vision, where: str = "image") -> Prepared:
    """Decodes and cuts an image file. Raises UsageError for one that cannot be read (decode.read_rgb)."""
    return prepare_rgb(read_rgb(data, where), vision)


def prepare_rgb(rgb: NDArray[np.uint8], vision: MllamaVision | Llama4Vision) -> Prepared:
    """Cuts the image rgb, uint8 (height, width, 3)."""
    import numpy as np

    height, width = rgb.shape[:2]
    cut = tiling(height, width, vision)
    rows, columns = cut.grid
    side = vision.tile
    page = np.zeros((rows * side, columns * side, 3), np.uint8)  # what the image does not cover is black
    page[: cut.height, : cut.width] = resize(rgb, cut.height, cut.width)
    tiles = page.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)
    if cut.overview:
        tiles = np.concatenate([tiles, resize(rgb, side, side).transpose(2, 0, 1)[None]])
    mean, deviation = CLIP if isinstance(vision, MllamaVision) else HALVES
    pixels = _normalized(tiles, mean, deviation)
    tokens = vision.tokens_per_tile if isinstance(vision, Llama4Vision) else 0
    return Prepared(pixels, cut.grid, _key(pixels, cut.grid), tokens)


def resize(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """rgb, uint8 (h, w, 3), at height x width pixels: bilinear, antialiased when smaller."""
    import numpy as np

    if rgb.shape[:2] == (height, width):
        return rgb
    library = pillow()
    return np.asarray(library.fromarray(rgb).resize((width, height), library.Resampling.BILINEAR))


def _normalized(tiles: NDArray[np.uint8], mean: tuple[float, ...], deviation: tuple[float, ...]) -> NDArray[np.float32]:
    """(pixel / 255 - mean) / deviation, in float32."""
    import numpy as np

    def channels(values: tuple[float, ...]) -> NDArray[np.float32]:
        return np.array(values, np.float32).reshape(3, 1, 1)

    pixels = np.ascontiguousarray(tiles, np.float32)
    pixels *= np.float32(1 / 255)
    pixels -= channels(mean)
    pixels /= channels(deviation)
    return pixels


def _key(pixels: NDArray[np.float32], grid: tuple[int, int]) -> bytes:
    digest = hashlib.sha256(repr((grid, pixels.shape)).encode())
    digest.update(pixels.data)
    return digest.digest()
