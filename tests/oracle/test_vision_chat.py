"""A chat with images from the messages to the answer: herder.load and LLM.chat on one side; on the other Meta's own
encoder of prompts and images, and transformers' network. The models are tiny, the vocabularies Meta's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herder
from herder.images.tiles import aspect_ratio_id
from tests.images.pictures import file_of, picture
from tests.oracle import checkpoints
from tests.oracle.test_vision_mllama import cross_mask
from tests.oracle.torchvision_stand_in import meta_transforms

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

TOKENS = 5
STRIP, SQUARE = file_of(picture(16, 24)), file_of(picture(9, 8), "JPEG")
CONTENT: list[str | bytes] = [STRIP, "What has this <|image|> in common with", SQUARE, "?"]


def finished(path: Path, version: str, image_token: int) -> Path:
    """The checkpoint with Meta's vocabulary and its image token."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    spec = find_spec("llama_models")
    assert spec is not None and spec.origin is not None
    shutil.copy(Path(spec.origin).parent / version / "tokenizer.model", path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"image_token_index": image_token}))
    return path


def ours(path: Path, chat_format: str) -> list[int]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in CONTENT
    ]
    with herder.load(
        path, runtime="torch", device="cpu", dtype="float32", chat_format=chat_format, context=128, threads=1
    ) as llm:
        answer = llm.chat([{"role": "user", "content": parts}], max_tokens=TOKENS, temperature=0, ignore_eos=True)
    return list(answer.tokens)


def metas_messages() -> list[Any]:
    from llama_models.datatypes import RawMediaItem, RawMessage, RawTextItem

    content = [RawTextItem(text=part) if isinstance(part, str) else RawMediaItem(data=part) for part in CONTENT]
    return [RawMessage(role="user", content=content)]


def greedy(theirs: Any, ids: Sequence[int], inputs: Any) -> list[int]:
    """transformers' answer; inputs: the other arguments of its network for these ids."""
    import torch

    ids, begin = list(ids), len(ids)
    with torch.inference_mode():
        for _ in range(TOKENS):
            ids.append(int(theirs(input_ids=torch.tensor([ids]), **inputs(ids)).logits[0, -1].argmax()))
    return ids[begin:]


def test_llama4(tmp_path: Path) -> None:
    import torch

    theirs = checkpoints.llama4(tmp_path, vocab_size=202048)
    theirs.config.image_token_id = 200092
    finished(tmp_path, "llama4", 200092)
    meta_transforms()
    from llama_models.llama4.args import Size, VisionArgs
    from llama_models.llama4.chat_format import ChatFormat
    from llama_models.llama4.tokenizer import Tokenizer

    shape = VisionArgs(
        image_size=Size(height=8, width=8), patch_size=Size(height=2, width=2), pixel_shuffle_ratio=0.5,
        dim=0, n_layers=0, n_heads=0, mlp_ratio=0, output_dim=0,
    )  # fmt: skip
    prompt = ChatFormat(Tokenizer.get_instance(), shape).encode_dialog_prompt(metas_messages())
    pixels = torch.cat(prompt.images)
    assert len(pixels) == 7 + 3
    assert ours(tmp_path, "llama4") == greedy(theirs, prompt.tokens, lambda ids: {"pixel_values": pixels})


def test_llama32_vision(tmp_path: Path) -> None:
    import torch
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    theirs = checkpoints.mllama(tmp_path, vocab_size=128256)
    tower = theirs.model.vision_model
    tower.intermediate_layers_indices = [layer - 1 for layer in tower.intermediate_layers_indices]
    finished(tmp_path, "llama3", 128256)
    prompt = ChatFormat(Tokenizer.get_instance()).encode_dialog_prompt(metas_messages())
    transform = meta_transforms()[0].VariableSizeImageTransform(8)
    transform.normalize = lambda image: (image - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    cut = [transform(image, 4) for image in prompt.vision.images]

    pixels = torch.zeros(1, 2, 4, 3, 8, 8)
    there = torch.zeros(1, 2, 4, dtype=torch.long)
    for number, (tiles, _) in enumerate(cut):
        pixels[0, number, : len(tiles)] = tiles
        there[0, number, : len(tiles)] = 1
    numbers = torch.tensor([[aspect_ratio_id(tuple(grid), 4) for _, grid in cut]])
    shown = {"pixel_values": pixels, "aspect_ratio_ids": numbers, "aspect_ratio_mask": there}
    first = prompt.tokens.index(128256)

    def unseen(module: Any, arguments: Any, output: Any) -> Any:
        """What transformers leaves out: a token that sees no image gets nothing from cross-attention."""
        rows = torch.arange(output[0].shape[1]) >= first
        return output[0] * rows[:, None], *output[1:]

    for number in (1, 3):
        theirs.model.language_model.layers[number].cross_attn.register_forward_hook(unseen)
    tiles = [len(one) for one, _ in cut]
    assert ours(tmp_path, "llama3") == greedy(
        theirs, prompt.tokens, lambda ids: shown | {"cross_attention_mask": cross_mask(ids, 128256, tiles)}
    )


CLIP_MEAN = np.float32([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
CLIP_STD = np.float32([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
