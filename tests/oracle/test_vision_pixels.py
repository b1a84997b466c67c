"""Images as the models' makers prepare them: Meta's own code for both models, transformers' for Llama 3.2 Vision, and
for Llama 4 the antialiased resize that transformers uses, PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from herder.core.config import Llama4Vision, MllamaVision
from herder.images.prepare import CLIP, prepare_rgb, resize
from herder.images.tiles import canvas, drawn_size
from tests.images.pictures import LLAMA4, MLLAMA, picture
from tests.oracle.torchvision_stand_in import meta_transforms

pytestmark = pytest.mark.oracle

sides = st.one_of(st.integers(1, 200), st.integers(1, 3000), st.integers(1, 60000))
SIZES = [(28, 28), (56, 56), (5, 200), (300, 11), (61, 97), (29, 27), (120, 400), (1, 3)]


@pytest.fixture(scope="module")
def meta() -> tuple[Any, Any]:
    return meta_transforms()


@pytest.mark.parametrize(("version", "tile", "most"), [(0, 560, 4), (0, 448, 4), (1, 336, 16)])
def test_canvas_and_drawn_size_are_metas(meta: tuple[Any, Any], version: int, tile: int, most: int) -> None:
    import torch

    transform = meta[version].VariableSizeImageTransform(tile)
    shapes = torch.tensor(transform.find_supported_resolutions(most, tile))

    @settings(max_examples=400, deadline=None)
    @given(sides, sides)
    def check(height: int, width: int) -> None:
        grid = canvas(height, width, tile, most)
        best = transform.get_best_fit((width, height), shapes)
        assert best == (grid[1] * tile, grid[0] * tile)
        target = (min(max(width, tile), best[0]), min(max(height, tile), best[1]))
        drawn = transform.get_max_res_without_distortion((width, height), target)
        assert (max(drawn[1], 1), max(drawn[0], 1)) == drawn_size(height, width, grid, tile)

    check()


@settings(max_examples=400, deadline=None)
@given(sides, sides)
def test_canvas_and_drawn_size_of_llama32_are_those_of_transformers(height: int, width: int) -> None:
    from transformers.models.mllama import image_processing_pil_mllama as hf

    grid = canvas(height, width, 560, 4)
    shape = hf.get_optimal_tiled_canvas(height, width, 4, 560)
    assert tuple(shape) == (grid[0] * 560, grid[1] * 560)
    assert hf.get_image_size_fit_to_canvas(height, width, *shape, 560) == drawn_size(height, width, grid, 560)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_llama4_are_metas(meta: tuple[Any, Any], size: tuple[int, int]) -> None:
    rgb = picture(*size)
    image = Image.fromarray(rgb)
    tiles, grid = meta[1].VariableSizeImageTransform(LLAMA4.tile)(image, LLAMA4.max_tiles)
    tiles = tiles.numpy()
    if len(tiles) > 1:  # as llama4/chat_format.py does
        whole = meta[1].ResizeNormalizeImageTransform(LLAMA4.tile, LLAMA4.tile)(image)
        tiles = np.concatenate([tiles, whole.numpy()[None]])
    got = prepare_rgb(rgb, LLAMA4)
    assert got.grid == tuple(grid)
    np.testing.assert_allclose(got.pixels, tiles, atol=1e-5)


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 3])  # Meta's fails where a side becomes 0
def test_pixels_of_llama32_are_metas(meta: tuple[Any, Any], size: tuple[int, int]) -> None:
    rgb = picture(*size)
    transform = meta[0].VariableSizeImageTransform(MLLAMA.tile)
    tiles, grid = transform(Image.fromarray(rgb), MLLAMA.max_tiles)
    got = prepare_rgb(rgb, MLLAMA)
    assert got.grid == tuple(grid)
    np.testing.assert_allclose(got.pixels, tiles.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_llama32_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    rgb = picture(*size)
    processor = MllamaImageProcessorPil(
        size={"height": 28, "width": 28}, image_mean=list(CLIP[0]), image_std=list(CLIP[1]), max_image_tiles=4
    )
    found = processor(Image.fromarray(rgb), return_tensors="np")
    got = prepare_rgb(rgb, MLLAMA)
    tiles = got.grid[0] * got.grid[1]
    assert found["num_tiles"] == [[tiles]]
    np.testing.assert_allclose(got.pixels, found["pixel_values"][0, 0, :tiles], atol=1e-5)
    assert not found["pixel_values"][0, 0, tiles:].any()


@pytest.mark.parametrize("size", [((300, 400), (130, 173)), ((40, 30), (112, 84)), ((500, 333), (56, 56))])
def test_torchs_antialiased_resize_differs_by_rounding(size: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """What torchvision does to transformers' images of Llama 4."""
    import torch
    import torch.nn.functional as F

    rgb = picture(*size[0])
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    theirs = F.interpolate(pixels, size[1], mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    ours = resize(rgb, *size[1])
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_sizes_of_the_published_models() -> None:
    """One image of each at its real tile size, against nothing but the layout."""
    scout = Llama4Vision(
        dim=1408, layers=34, heads=16, ffn_dim=5632, patch=14, tile=336, projector_dim=4096, output_dim=4096
    )
    vision = MllamaVision(
        dim=1280, layers=32, global_layers=8, heads=16, ffn_dim=5120, patch=14, tile=560, max_tiles=4, taps=()
    )
    rgb = picture(512, 512)
    assert prepare_rgb(rgb, scout).pixels.shape == (5, 3, 336, 336)
    assert prepare_rgb(rgb, vision).pixels.shape == (1, 3, 560, 560)
