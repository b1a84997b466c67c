"""The cache of encoded images, and which positions see which images, against Meta's and transformers' own ranges."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.core.batch import Chunk
from herder.core.request import Image
from tests.oracle import checkpoints
from tests.oracle.test_vision_llama4 import prompt as llama4_prompt
from tests.oracle.test_vision_mllama import SIZES, prompt
from tests.oracle.vision import chunk, executor, run

pytestmark = pytest.mark.oracle

IMAGE = 128256


def seen(ids: Sequence[int], start: int, end: int) -> dict[int, set[int]]:
    """position -> the positions of the images it sees, as herder.runtime.torch_images.views has it."""
    from herder.runtime.torch_images import views

    images = tuple(
        Image(None, (1, 1), (at,), at.to_bytes(4)) for at, token in enumerate(ids) if token == IMAGE and at < end
    )
    found: dict[int, set[int]] = {position: set() for position in range(start, end)}
    for view in views(Chunk(0, array("i", ids[start:end]), start, array("i"), images=images)):
        for position in range(view.start, view.end):
            assert not found[position], "seen in two views"
            found[position] = {image.positions[0] for image in view.images if image.positions[0] <= position}
    return found


@given(st.lists(st.sampled_from([IMAGE, 7]), min_size=1, max_size=30), st.data())
def test_who_sees_which_image_is_what_meta_says(ids: list[int], data: st.DataObject) -> None:
    from llama_models.llama3.chat_format import create_vision_mask

    expected: dict[int, set[int]] = {position: set() for position in range(len(ids))}
    for begin, end in create_vision_mask(ids, IMAGE):
        for position in range(begin, len(ids) if end == -1 else end):
            expected[position].add(begin)
    start = data.draw(st.integers(0, len(ids) - 1))
    end = data.draw(st.integers(start + 1, len(ids)))
    assert seen(ids, 0, len(ids)) == expected
    assert seen(ids, start, end) == {position: expected[position] for position in range(start, end)}


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("mllama")
    checkpoints.mllama(path)
    with executor(path) as model:
        yield model


@pytest.fixture
def encoded(mllama: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Forgets all images, and lists the shapes of those that are encoded from now on."""
    from herder.runtime.torch_images import EncoderCache

    return watched(mllama, EncoderCache(mllama._model), monkeypatch)


def watched(model: Any, cache: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    see = model._model.see

    def counted(pixels: Any, grid: tuple[int, int]) -> Any:
        shapes.append(grid)
        return see(pixels, grid)

    monkeypatch.setattr(model._model, "see", counted)
    monkeypatch.setattr(model, "_images", cache)
    return shapes


def test_an_image_is_encoded_once(mllama: Any, encoded: list[tuple[int, ...]]) -> None:
    ids, images = prompt(mllama._model.config.vision, SIZES[0], SIZES[1], 9, 8, 7)
    for at in range(len(ids)):  # the group of two comes into being image by image
        run(mllama, chunk(ids, at, at + 1, images))
    run(mllama, chunk(ids, 0, len(ids), images), chunk(ids, 0, len(ids), images, seq=1))
    assert encoded == [(2, 2), (1, 1)]


def test_the_cache_is_bounded_and_what_it_lost_is_encoded_again(mllama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from herder.runtime.torch_images import EncoderCache

    cache = EncoderCache(mllama._model, capacity=0)
    shapes = watched(mllama, cache, monkeypatch)
    vision = mllama._model.config.vision
    first, second = prompt(vision, SIZES[0], 9, 8), prompt(vision, SIZES[1], 9, 8)
    [before] = run(mllama, chunk(first[0], 0, 3, first[1]))
    held = cache.bytes
    assert held == 4 * 17 * 64 * 4 * (1 + 2 * 2 * 32 // 64)  # states, and keys and values of two layers
    run(mllama, chunk(second[0], 0, 3, second[1], seq=1))
    assert cache.bytes == held // 4  # of the batch under way alone
    run(mllama, chunk([9, 8], 0, 2, (), seq=1))
    assert cache.bytes == 0
    [after] = run(mllama, chunk(first[0], 2, 3, first[1]))
    np.testing.assert_allclose(after, before[2:], atol=1e-5)
    assert shapes == [(2, 2), (1, 1), (2, 2)]


def test_images_of_llama4_are_not_encoded_for_tokens_after_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from herder.runtime.torch_images import EncoderCache

    checkpoints.llama4(tmp_path)
    with executor(tmp_path) as model:
        cache = EncoderCache(model._model, capacity=0)
        shapes = watched(model, cache, monkeypatch)
        ids, images = llama4_prompt(model._model.config.vision, [(8, 8)])
        last = images[0].positions[-1]
        run(model, chunk(ids, 0, last, images))
        run(model, chunk(ids, last, last + 1, images))
        run(model, chunk(ids, last + 1, len(ids), images))
        assert shapes == [(1, 1)] and cache.bytes == 0
