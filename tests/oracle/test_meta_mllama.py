"""Meta's own Llama 3.2 Vision, small, agrees with the torch runtime on its weights read from a .pth: the image encoder
with its taps, and the logits of prompts with images, with none, and with text before the first.

Meta's code fixes the encoder's size; here it is built smaller, and MLLAMA_VISION, our statement of that size, with it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from herder.core.config import MllamaVision
from herder.core.request import Image
from herder.images.prepare import prepare_rgb
from herder.weights import config_meta
from herder.weights.source import open_model
from tests.images.pictures import picture
from tests.oracle import vision
from tests.oracle.activations import Floats
from tests.oracle.meta_modules import one_rank, randomize
from tests.oracle.torchvision_stand_in import meta_transforms

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
VOCAB = 96
LENGTH = 64
PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": VOCAB, "multiple_of": 32, "norm_eps": 1e-5,
    "rope_theta": 500000.0, "use_scaled_rope": True, "vision_chunk_size": 28, "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": 2,
}  # fmt: skip
VISION = MllamaVision(
    dim=32, layers=4, global_layers=2, heads=2, ffn_dim=128, patch=14, tile=28, max_tiles=4, taps=(1, 3)
)


class Witness(NamedTuple):
    model: Any  # Meta's CrossAttentionTransformer
    path: Path


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch

    meta_transforms()
    from fairscale.nn.model_parallel.layers import ColumnParallelLinear
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.multimodal import model as mllama

    folder = tmp_path_factory.mktemp("mllama")
    whole = mllama.VisionEncoder

    def smaller(**given: Any) -> Any:
        fixed = {name: value.default for name, value in inspect.signature(whole).parameters.items()} | given
        published = config_meta.MLLAMA_VISION
        assert (published.dim, published.layers, published.heads) == (fixed["width"], fixed["layers"], fixed["heads"])
        assert published.ffn_dim == fixed["mlp_ratio"] * fixed["width"]
        assert (published.patch, published.global_layers) == (fixed["patch_size"], fixed["n_global_layers"])
        assert (published.max_tiles, list(published.taps)) == (fixed["max_num_tiles"], fixed["return_intermediate"])
        return whole(
            max_num_tiles=4, image_size=given["image_size"], patch_size=14, width=VISION.dim, layers=VISION.layers,
            heads=VISION.heads, n_global_layers=VISION.global_layers, return_intermediate=VISION.taps,
        )  # fmt: skip

    with one_rank(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(mllama, "VisionEncoder", smaller)
        model = mllama.CrossAttentionTransformer(ModelArgs(**PARAMS, max_batch_size=1, max_seq_len=LENGTH))
        wide = VISION.dim * (1 + len(VISION.taps))
        model.vision_model.vision_projection = ColumnParallelLinear(wide, PARAMS["dim"], bias=True)
        randomize(model, seed=6)
        torch.save(model.state_dict(), folder / "consolidated.pth")
        (folder / "params.json").write_text(json.dumps(PARAMS))
        patch.setattr(config_meta, "MLLAMA_VISION", VISION)
        model.setup_cache(1, torch.device("cpu"), torch.float32)
        yield Witness(model.eval(), folder)


def prompt(*parts: int | tuple[int, int]) -> tuple[list[int], tuple[Image, ...]]:
    """Token ids, and images of (height, width) pixels, each one token: the first after the vocabulary."""
    ids: list[int] = []
    images = []
    for part in parts:
        if isinstance(part, tuple):
            cut = prepare_rgb(picture(*part, seed=len(ids)), VISION)
            images.append(Image(cut.pixels, cut.grid, (len(ids),), cut.key))
            ids.append(VOCAB)
        else:
            ids.append(part)
    return ids, tuple(images)


def meta_states(model: Any, images: Sequence[Image]) -> Any:
    """(1, images, 4 tiles, tokens, dim): the encoder's output through the projector."""
    import torch

    pixels = torch.zeros(1, len(images), 4, 3, VISION.tile, VISION.tile)
    for index, image in enumerate(images):
        pixels[0, index, : len(image.pixels)] = torch.tensor(np.asarray(image.pixels))
    return model.vision_model(pixels, torch.tensor([[image.grid for image in images]]))


def meta_logits(model: Any, ids: Sequence[int], images: Sequence[Image]) -> Floats:
    import torch
    from llama_models.llama3.chat_format import create_vision_mask
    from llama_models.llama3.multimodal import model as mllama

    length, text = len(ids), model.text_model
    with torch.inference_mode():
        states = meta_states(model, images) if images else torch.zeros(1, 1, 4, 5, PARAMS["dim"])
        caches = torch.stack([
            layer.compute_xattn_kv_cache(states.view(1, -1, states.shape[-1])) for layer in text.cross_attention_layers
        ])  # fmt: skip
        ranges = create_vision_mask(list(ids), VOCAB)
        masks = mllama._pad_masks([ranges], [[len(image.pixels) for image in images]], length, 4) if images else None
        if masks is None:
            masks = torch.zeros(1, length, 1, 4)
        cross, full = text._get_xattn_mask(length, "cpu", torch.float32, states, masks)
        out = model(
            torch.arange(length), torch.tensor([list(ids)]), cross, full, caches, text_only_inference=not images
        )
    logits: Floats = out[0].numpy()
    return logits


def test_the_configuration_is_that_of_params_json(witness: Witness) -> None:
    with open_model(witness.path) as files:
        config = files.config
    assert [layer.cross for layer in config.plan] == [False, True, False, False, True, False]
    assert (config.embedding_rows, config.image_token, config.vision) == (VOCAB + 8, VOCAB, VISION)
    assert config.rope.factor == 8.0


def test_the_encoder_is_metas(witness: Witness) -> None:
    """Tiles in a square, a row and alone; taps and projector included."""
    import torch

    _, images = prompt((28, 28), (56, 50), (20, 100))
    assert [image.grid for image in images] == [(1, 1), (2, 2), (1, 4)]
    with vision.executor(witness.path) as model, torch.inference_mode():
        for image in images:
            theirs = meta_states(witness.model, [image])[0, 0, : len(image.pixels)]
            ours = model._model.see(torch.tensor(np.asarray(image.pixels)), image.grid)
            np.testing.assert_allclose(ours.numpy(), theirs.flatten(0, 1).numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("parts", [
    ((28, 28), 5, 17, 33, 2, 90),
    (3, 4, (56, 50), 8, 9, 10),
    (3, (20, 100), (28, 28), 8, 9, 10, (56, 56), 11, 12),
    (1, 2, 3, 4, 5),
], ids=["image first", "text first", "three images", "text only"])  # fmt: skip
def test_logits_are_those_of_metas_module(witness: Witness, parts: Any) -> None:
    ids, images = prompt(*parts)
    expected = meta_logits(witness.model, ids, images)
    with vision.executor(witness.path) as model:
        if images:
            assert np.abs(vision.logits(model, ids, ()) - expected).max() > 100 * TOLERANCE  # the images do matter
        for step in (None, 2):
            np.testing.assert_allclose(vision.logits(model, ids, images, step), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_load_as_the_whole(witness: Witness, tmp_path: Path, ranks: int) -> None:
    """Split by Meta's resharding code, but for two tensors that it leaves whole and Meta's layers do not."""
    import torch
    from llama_models.checkpoint import reshard_mp

    params = {**PARAMS, "n_kv_heads": 4}
    state = {name: value.clone() for name, value in witness.model.state_dict().items()}
    for layers in ("layers.{}", "cross_attention_layers.{}"):
        for layer in range(PARAMS["n_layers"]):
            for part in "kv":  # four heads, so that four ranks can share them
                name = f"text_model.{layers.format(layer)}.attention.w{part}.weight"
                if name in state:
                    state[name] = state[name].repeat(2, 1)
    for directory, shards in (
        (tmp_path / "whole", [state]),
        (tmp_path / "split", [reshard_mp([state], ranks, rank) for rank in range(ranks)]),
    ):
        directory.mkdir()
        (directory / "params.json").write_text(json.dumps(params))
        for rank, shard in enumerate(shards):
            for name in ("text_model.learnable_embedding.weight", "vision_model.vision_projection.bias"):
                shard[name] = state[name].chunk(len(shards))[rank].clone() if len(shards) > 1 else state[name]
            torch.save(shard, directory / f"consolidated.{rank:02d}.pth")
    found = []
    for name in ("whole", "split"):
        with open_model(tmp_path / name) as files:
            found.append({tensor.name: bytes(tensor.view()) for tensor in files.load()})
    assert found[0] == found[1]


def test_the_published_sizes(witness: Witness) -> None:
    """The constants, put back: 11B with its eight cross-attention layers, as Hugging Face counts them."""
    published = replace(VISION, dim=1280, layers=32, global_layers=8, heads=16, ffn_dim=5120, taps=(3, 7, 15, 23, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_meta, "MLLAMA_VISION", published)
        params = {**PARAMS, "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vision_chunk_size": 560}
        params |= {"vocab_size": 128256, "vision_num_cross_attention_layers": 8}
        config = config_meta.config_from_meta("params.json", params, vocab=128256, tied=False)
    assert [i for i, layer in enumerate(config.plan) if layer.cross] == [3, 8, 13, 18, 23, 28, 33, 38]
    assert (config.layers, config.image_token, config.context) == (40, 128256, 131072)
