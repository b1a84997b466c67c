"""Images to tiles: layout, padding, normalization, keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.config import Llama4Vision, MllamaVision
from herder.core.errors import UsageError
from herder.images import prepare as prepare_module
from herder.images.prepare import CLIP, HALVES, Preparer, prepare, prepare_rgb, resize
from tests.images.pictures import LLAMA4, MLLAMA, file_of, picture


def test_tiles_are_the_picture_row_by_row() -> None:
    rgb = picture(56, 84)
    got = prepare_rgb(rgb, LLAMA4)
    assert got.grid == (2, 3) and got.pixels.shape == (7, 3, 28, 28) and got.pixels.flags.c_contiguous
    assert got.pixels.dtype == np.float32
    for at, tile in enumerate(got.pixels[:-1]):
        row, column = divmod(at, 3)
        part = rgb[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28]
        np.testing.assert_allclose(tile, part.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_the_last_tile_of_llama4_is_all_of_it() -> None:
    rgb = picture(56, 84)
    whole = resize(rgb, 28, 28).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(prepare_rgb(rgb, LLAMA4).pixels[-1], whole, atol=1e-6)


@pytest.mark.parametrize(("vision", "constants"), [(MLLAMA, CLIP), (LLAMA4, HALVES)])
def test_what_the_picture_does_not_cover_is_black(vision: MllamaVision | Llama4Vision, constants: tuple) -> None:
    got = prepare_rgb(np.full((10, 28, 3), 255, np.uint8), vision)
    black, white = ((value - np.array(constants[0])) / np.array(constants[1]) for value in (0, 1))
    np.testing.assert_allclose(got.pixels[0, :, 10:], np.broadcast_to(black[:, None, None], (3, 18, 28)), atol=1e-5)
    np.testing.assert_allclose(got.pixels[0, :, :10], np.broadcast_to(white[:, None, None], (3, 10, 28)), atol=1e-5)


def test_tokens_of_a_tile() -> None:
    assert prepare_rgb(picture(28, 28), LLAMA4).tile_tokens == 1
    assert prepare_rgb(picture(28, 28), MLLAMA).tile_tokens == 0
    scout = Llama4Vision(
        dim=1408, layers=34, heads=16, ffn_dim=5632, patch=14, tile=336, projector_dim=4096, output_dim=4096
    )
    assert scout.tokens_per_tile == 144


def test_keys_tell_images_apart() -> None:
    rgb = picture(56, 28)
    same = prepare(file_of(rgb), LLAMA4).key
    assert same == prepare_rgb(rgb.copy(), LLAMA4).key and len(same) == 32
    other = rgb.copy()
    other[3, 3, 1] ^= 1
    assert prepare_rgb(other, LLAMA4).key != same
    assert (
        prepare_rgb(np.zeros((56, 28, 3), np.uint8), MLLAMA).key
        != prepare_rgb(np.zeros((28, 56, 3), np.uint8), MLLAMA).key
    )


def test_the_last_few_images_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = prepare_module.read_rgb
    monkeypatch.setattr(prepare_module, "read_rgb", lambda data, where: decoded.append(data) or decode(data, where))
    preparer = Preparer(LLAMA4, keep=2)
    one, two, three = (file_of(picture(28, 28, seed)) for seed in range(3))
    for data in (one, two, one, one, three, one, two):
        assert preparer(data).key == prepare_rgb(decode(data), LLAMA4).key
    assert decoded == [one, two, three, two]
    with pytest.raises(UsageError, match="picture 3 is a damaged PNG file"):
        preparer(one[:100], "picture 3")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([MLLAMA, LLAMA4]))
def test_any_size_gives_whole_tiles(height: int, width: int, vision: MllamaVision | Llama4Vision) -> None:
    got = prepare_rgb(np.zeros((height, width, 3), np.uint8), vision)
    rows, columns = got.grid
    several = isinstance(vision, Llama4Vision) and got.grid != (1, 1)
    assert got.pixels.shape == (rows * columns + several, 3, 28, 28)
    assert rows * columns <= vision.max_tiles
