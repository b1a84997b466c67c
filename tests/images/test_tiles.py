"""Canvases and drawn sizes: Meta's published examples, and the properties of the rule.

tests/oracle/test_vision_pixels.py compares with the references' own functions.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.images.tiles import aspect_ratio_id, aspect_ratios, canvas, drawn_size, tiling
from tests.images.pictures import LLAMA4, MLLAMA

sides = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("size", "grid"), [((512, 512), (2, 2)), ((1280, 1280), (4, 4)), ((336, 336), (1, 1)), ((100, 3000), (1, 9))]
)
def test_published_examples_of_llama4(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert canvas(*size, 336, 16) == grid


@given(sides, sides, st.sampled_from([(336, 16), (560, 4), (448, 4), (28, 16)]))
def test_the_canvas_is_the_one_of_the_rule(height: int, width: int, shape: tuple[int, int]) -> None:
    """Word for word, in fractions."""
    tile, most = shape
    scales = {
        (r, c): min(Fraction(r * tile, height), Fraction(c * tile, width))
        for r in range(1, most + 1)
        for c in range(1, most + 1)
        if r * c <= most
    }
    enlarging = [scale for scale in scales.values() if scale >= 1]
    best = min(enlarging) if enlarging else max(scales.values())
    grid = canvas(height, width, tile, most)
    assert scales[grid] == best
    assert grid[0] * grid[1] == min(r * c for (r, c), scale in scales.items() if scale == best)


@given(sides, sides)
def test_the_image_fits_its_canvas_and_fills_one_side_of_what_it_may(height: int, width: int) -> None:
    grid = canvas(height, width, 336, 16)
    drawn = drawn_size(height, width, grid, 336)
    most = [min(max(size, 336), n * 336) for size, n in zip((height, width), grid, strict=True)]
    assert all(1 <= got <= limit for got, limit in zip(drawn, most, strict=True))
    assert drawn[0] == most[0] or drawn[1] == most[1]


@given(sides, sides)
def test_an_image_that_fits_is_never_made_smaller(height: int, width: int) -> None:
    grid = canvas(height, width, 336, 16)
    if height <= grid[0] * 336 and width <= grid[1] * 336:
        drawn = drawn_size(height, width, grid, 336)
        assert drawn[0] >= height - 1 and drawn[1] >= width - 1  # the one pixel of drawn_size's docstring


def test_only_llama4_adds_an_overview_and_only_to_several_tiles() -> None:
    assert tiling(28, 28, LLAMA4) == ((1, 1), 28, 28, False)
    assert tiling(28, 56, LLAMA4) == ((1, 2), 28, 56, True)
    assert tiling(28, 56, LLAMA4).tiles == 3
    assert tiling(28, 56, MLLAMA) == ((1, 2), 28, 56, False)


def test_aspect_ratio_ids_are_those_of_the_checkpoints() -> None:
    shapes = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
    assert [aspect_ratio_id(shape, 4) for shape in shapes] == list(range(1, 9))
    assert aspect_ratios(4) == 8
