"""Llama 3.2 Vision against transformers: the encoder's activations, and the logits of prompts with several images,
whole, in pieces, and token by token.

transformers differs from Meta, whom we follow, in two places: the taps, which its model is told to take one layer
earlier here; and tokens before the first image, of which there are none in the prompts compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from herder.core.request import Image
from herder.images.prepare import prepare_rgb
from herder.images.tiles import aspect_ratio_id
from tests.images.pictures import picture
from tests.oracle import checkpoints
from tests.oracle.activations import Floats, first_divergence
from tests.oracle.vision import chunk, executor, logits, ours, recorded, run

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
SIZES = ((16, 16), (8, 8), (7, 30))  # 2 x 2 tiles; one; a strip of 1 x 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """transformers' model, and our executor of its files."""
    path = tmp_path_factory.mktemp("mllama")
    theirs = checkpoints.mllama(path)
    tower = theirs.model.vision_model
    tower.intermediate_layers_indices = [layer - 1 for layer in tower.intermediate_layers_indices]
    with executor(path) as model:
        assert model._model.config.vision.taps == (1, 2)
        yield theirs, model


def prompt(vision: Any, *parts: int | tuple[int, int]) -> tuple[list[int], tuple[Image, ...]]:
    """Token ids, and images of (height, width) pixels, each one token."""
    ids, images = [], []
    for part in parts:
        if isinstance(part, tuple):
            cut = prepare_rgb(picture(*part, seed=len(ids)), vision)
            images.append(Image(cut.pixels, cut.grid, (len(ids),), cut.key))
            ids.append(checkpoints.MLLAMA_IMAGE)
        else:
            ids.append(part)
    return ids, tuple(images)


def vision_inputs(images: Sequence[Image], most: int = 4) -> dict[str, Any]:
    """transformers' arguments: tiles filled up with zeros, aspect ratios, and which tiles are there."""
    import torch

    pixels = np.zeros((len(images), most, *images[0].pixels.shape[1:]), np.float32)
    mask = np.zeros((1, len(images), most), np.int64)
    for number, image in enumerate(images):
        pixels[number, : len(image.pixels)] = image.pixels
        mask[0, number, : len(image.pixels)] = 1
    ids = [[aspect_ratio_id(image.grid, most) for image in images]]
    return {
        "pixel_values": torch.from_numpy(pixels)[None],
        "aspect_ratio_ids": torch.tensor(ids),
        "aspect_ratio_mask": torch.from_numpy(mask),
    }


def cross_mask(ids: Sequence[int], token: int, tiles: Sequence[int]) -> Any:
    """transformers' own cross-attention mask, (1, tokens, images, 4)."""
    import torch
    from transformers.models.mllama import processing_mllama as processing

    ranges = [processing.get_cross_attention_token_mask(list(ids), token)]
    return torch.from_numpy(processing.convert_sparse_cross_attention_mask_to_dense(ranges, [list(tiles)], 4, len(ids)))


def expected(theirs: Any, ids: Sequence[int], images: Sequence[Image]) -> Floats:
    import torch

    mask = cross_mask(ids, checkpoints.MLLAMA_IMAGE, [len(image.pixels) for image in images])
    with torch.inference_mode():
        output = theirs(input_ids=torch.tensor([list(ids)]), cross_attention_mask=mask, **vision_inputs(images))
    found: Floats = output.logits[0].float().numpy()
    return found


@pytest.mark.parametrize("size", SIZES)
def test_the_encoder(pair: tuple[Any, Any], size: tuple[int, int]) -> None:
    import torch

    theirs, model = pair
    llama = model._model
    _, (image,) = prompt(llama.config.vision, size)
    tower = theirs.model.vision_model
    modules = {"vision.layernorm_pre": tower.layernorm_pre, "vision.layernorm_post": tower.layernorm_post}
    modules |= {f"vision.layers.{number}.out": layer for number, layer in enumerate(tower.transformer.layers)}
    modules |= {f"vision.global.{number}.out": layer for number, layer in enumerate(tower.global_transformer.layers)}
    modules |= {"vision.out": tower, "projector.out": theirs.model.multi_modal_projector}
    with recorded(modules) as found, torch.inference_mode():
        theirs.model.multi_modal_projector(tower(**vision_inputs([image])).last_hidden_state)
    assert len(found) == 10
    for name in ("vision.out", "projector.out"):
        found[name] = found[name][: 17 * len(image.pixels)]  # without the tiles that are not there
    assert first_divergence(ours(llama, image), found, TOLERANCE) is None


def test_logits_of_prompts(pair: tuple[Any, Any]) -> None:
    theirs, model = pair
    vision = model._model.config.vision
    for parts in (
        (SIZES[0], 9, 8, 7, 6, 5),
        (SIZES[2], 9, 8, SIZES[1], 7, 6, 5, SIZES[0], 4),
        (SIZES[0], SIZES[1], 9, 8, SIZES[2], SIZES[1], SIZES[0], 7, 6),  # groups, each image seen from its own token
    ):
        ids, images = prompt(vision, *parts)
        want = expected(theirs, ids, images)
        assert np.abs(logits(model, ids, ()) - want).max() > 100 * TOLERANCE  # the images do matter
        for step in (None, 1, 2):
            np.testing.assert_allclose(
                logits(model, ids, images, step), want, atol=TOLERANCE, err_msg=f"{step} {parts}"
            )


def test_text_alone_skips_cross_attention(pair: tuple[Any, Any]) -> None:
    import torch

    theirs, model = pair
    ids = [1, 9, 8, 7, 6]
    with torch.inference_mode():
        want = theirs(input_ids=torch.tensor([ids])).logits[0].float().numpy()
    np.testing.assert_allclose(logits(model, ids, ()), want, atol=TOLERANCE)


def test_tokens_before_the_first_image_are_those_of_text_alone(pair: tuple[Any, Any]) -> None:
    """Meta's reading: what sees no image passes the cross-attention layers unchanged."""
    _, model = pair
    ids, images = prompt(model._model.config.vision, 1, 9, 8, SIZES[0], 7, 6)
    alone = logits(model, ids[:3], ())
    for step in (None, 2, 1):
        np.testing.assert_allclose(logits(model, ids, images, step)[:3], alone, atol=1e-5)


def test_text_and_images_of_two_conversations_in_one_batch(pair: tuple[Any, Any]) -> None:
    theirs, model = pair
    vision = model._model.config.vision
    first, second = prompt(vision, SIZES[0], 9, 8, 7), prompt(vision, SIZES[1], SIZES[2], 6, 5)
    plain = logits(model, [1, 9, 8], ())
    got = run(model, chunk(first[0], 0, 4, first[1]), chunk(second[0], 0, 4, second[1], seq=1))
    np.testing.assert_allclose(got[0], expected(theirs, *first), atol=TOLERANCE)
    np.testing.assert_allclose(got[1], expected(theirs, *second), atol=TOLERANCE)
    got = run(model, chunk(first[0], 3, 4, first[1]), chunk([1, 9, 8], 0, 3, (), seq=1))
    np.testing.assert_allclose(got[0], expected(theirs, *first)[3:], atol=TOLERANCE)
    np.testing.assert_allclose(got[1], plain, atol=TOLERANCE)


def test_the_engine_goes_on_like_transformers(pair: tuple[Any, Any]) -> None:
    from herder.core.request import Finished, NewToken, Request, Sampling
    from herder.engine.engine import Engine

    theirs, model = pair
    ids, images = prompt(model._model.config.vision, SIZES[2], *range(9, 60), SIZES[1], 7, 6, 5)
    want = list(ids)
    for _ in range(4):
        want.append(int(expected(theirs, want, images)[-1].argmax()))
    engine = Engine(model)
    try:
        cached = []
        for _ in range(2):  # the second time with pages of the prefix cache
            *tokens, end = engine.submit(Request(tuple(ids), max_tokens=4, images=images))
            assert [event.token for event in tokens if isinstance(event, NewToken)] == want[len(ids) :]
            cached.append(end.usage.cached_tokens)
        assert cached == [0, 32]
        penalized = Request(tuple(ids), max_tokens=4, images=images, sampling=Sampling(repetition_penalty=1.5))
        *_, end = engine.submit(penalized)  # the image's token has no logit that could be penalized
        assert isinstance(end, Finished) and end.error is None
    finally:
        engine.close()
