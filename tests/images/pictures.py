"""Pictures for the tests, as pixels and as files, and the two models' shapes at a small size."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from herder.core.config import Llama4Vision, MllamaVision

MLLAMA = MllamaVision(
    dim=32, layers=3, global_layers=2, heads=4, ffn_dim=48, patch=14, tile=28, max_tiles=4, taps=(0, 2)
)
LLAMA4 = Llama4Vision(
    dim=32, layers=2, heads=4, ffn_dim=48, patch=14, tile=28, projector_dim=40, output_dim=40, max_tiles=16
)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Slopes, waves and a little noise: something that resizing changes everywhere. uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    waves = np.stack([128 + 90 * np.sin(x / 7 + y / 13 + seed), 255 * x / width, 255 * y / height], -1)
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def file_of(image: NDArray[np.uint8] | Image.Image, form: str = "PNG", **options: object) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()
