"""Llama 4 with images against transformers: the encoder's activations, and the logits of prompts with several images,
whole, in pieces that cut through an image, and token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from herder.core.request import Image
from herder.images.prepare import prepare_rgb
from tests.images.pictures import picture
from tests.oracle import checkpoints
from tests.oracle.activations import Floats, first_divergence
from tests.oracle.vision import chunk, executor, logits, ours, recorded, run

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
SIZES = ((16, 24), (8, 8), (5, 30))  # 2 x 3 tiles and the overview; one tile; a strip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """transformers' model, and our executor of its files."""
    path = tmp_path_factory.mktemp("llama4")
    theirs = checkpoints.llama4(path)
    with executor(path) as model:
        yield theirs, model


def prompt(vision: Any, sizes: Sequence[tuple[int, int]]) -> tuple[list[int], tuple[Image, ...]]:
    """Text, images of (height, width) pixels between their control tokens, and text between them and at the end."""
    ids, images = [1, 9, 8], []
    for number, size in enumerate(sizes):
        cut = prepare_rgb(picture(*size, seed=number), vision)
        at: list[int] = []
        ids.append(checkpoints.IMAGE_START)
        for tile in range(len(cut.pixels)):
            ids.append(20 + tile)  # what separates the tiles is nothing but a token to the network
            at += range(len(ids), len(ids) + cut.tile_tokens)
            ids += [checkpoints.PATCH] * cut.tile_tokens
        ids += [checkpoints.IMAGE_END, 40 + number]
        images.append(Image(cut.pixels, cut.grid, tuple(at), cut.key))
    return [*ids, 5, 6, 7], tuple(images)


def expected(theirs: Any, ids: Sequence[int], images: Sequence[Image]) -> Floats:
    import torch

    pixels = torch.from_numpy(np.concatenate([image.pixels for image in images]))
    with torch.inference_mode():
        found: Floats = theirs(input_ids=torch.tensor([list(ids)]), pixel_values=pixels).logits[0].float().numpy()
    return found


def test_the_encoder(pair: tuple[Any, Any]) -> None:
    import torch

    theirs, model = pair
    llama = model._model
    _, (image,) = prompt(llama.config.vision, SIZES[:1])
    tower = theirs.vision_model
    modules = {"vision.layernorm_pre": tower.layernorm_pre, "vision.layernorm_post": tower.layernorm_post}
    modules |= {f"vision.layers.{number}.out": layer for number, layer in enumerate(tower.model.layers)}
    modules |= {"vision.out": tower, "projector.out": theirs.multi_modal_projector}
    with recorded(modules) as found, torch.inference_mode():
        states = theirs.get_image_features(torch.from_numpy(image.pixels)).last_hidden_state
        theirs.multi_modal_projector(states)
    assert len(found) == 6 and len(found["projector.out"]) == 7 * 4
    assert first_divergence(ours(llama, image), found, TOLERANCE) is None


def test_logits_of_a_prompt_with_three_images(pair: tuple[Any, Any]) -> None:
    theirs, model = pair
    ids, images = prompt(model._model.config.vision, SIZES)
    want = expected(theirs, ids, images)
    np.testing.assert_allclose(logits(model, ids, images), want, atol=TOLERANCE)
    blind = logits(model, ids, ())
    assert np.abs(blind - want).max() > 100 * TOLERANCE  # the images do matter
    for step in (1, 7):
        np.testing.assert_allclose(logits(model, ids, images, step), want, atol=TOLERANCE, err_msg=f"by {step}")


def test_two_conversations_in_one_batch(pair: tuple[Any, Any]) -> None:
    theirs, model = pair
    vision = model._model.config.vision
    first, second = prompt(vision, SIZES[:1]), prompt(vision, SIZES[1:])
    both = [expected(theirs, *first), expected(theirs, *second)]
    cut = 9  # within the first one's image
    run(model, chunk(first[0], 0, cut, first[1]))
    got = run(
        model, chunk(first[0], cut, len(first[0]), first[1]), chunk(second[0], 0, len(second[0]), second[1], seq=1)
    )
    np.testing.assert_allclose(got[0], both[0][cut:], atol=TOLERANCE)
    np.testing.assert_allclose(got[1], both[1], atol=TOLERANCE)
