"""Images in conversations: cut for the model, found in its prompt, handed to the engine (on the fake executor)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from herder.chat.format import Control, Prompt
from herder.chat.llama3 import Llama3Format
from herder.chat.llama4 import Llama4Format
from herder.chat.message import ImageLink, Message, read_messages
from herder.core.batch import Limits
from herder.core.config import ModelConfig
from herder.core.errors import ContextOverflow, HerderError, UnsupportedModel, UsageError
from herder.core.request import Sampling
from herder.engine.engine import Engine
from herder.images.prepare import prepare
from herder.llm import LLM
from herder.prompt_images import PromptImages
from herder.runtime.fake import FakeExecutor, FakeModel, reference
from herder.text.tokenizer import Tokenizer
from tests.images.pictures import LLAMA4, MLLAMA, file_of, picture
from tests.text.conftest import llama3, llama4  # noqa: F401
from tests.tiny import tiny_config

PATCH = 200092
IMAGE = 128256
STRIP, SQUARE = file_of(picture(20, 90)), file_of(picture(28, 28), "JPEG")


def config(vision: Any, image_token: int | None) -> ModelConfig:
    return replace(tiny_config(context=512), vision=vision, image_token=image_token, name="tiny")


SEES4, SEES3, BLIND = config(LLAMA4, PATCH), config(MLLAMA, IMAGE), config(None, None)


def asked(*parts: str | bytes) -> list[Message]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return read_messages([{"role": "user", "content": content}])


def test_llama4s_patches_are_where_its_images_go(llama4: Tokenizer) -> None:  # noqa: F811
    pictures = PromptImages(asked("Compare <|patch|>", STRIP, "with", SQUARE, "please"), SEES4, True)
    prompt = Llama4Format(llama4).render(pictures.messages)
    tokens = prompt.encode(llama4)
    strip, square = pictures.placed(tokens, prompt.images)
    assert strip.grid == (1, 4) and len(strip.positions) == len(strip.pixels) == 5
    assert square.grid == (1, 1) and len(square.positions) == len(square.pixels) == 1
    held = [*strip.positions, *square.positions]
    assert held == sorted(held) and [i for i, token in enumerate(tokens) if token == PATCH] == held
    assert strip.key == prepare(STRIP, LLAMA4).key != square.key


def test_llama32s_image_is_one_token(llama3: Tokenizer) -> None:  # noqa: F811
    pictures = PromptImages(asked(STRIP, SQUARE, "Which is longer?"), SEES3, True)
    prompt = Llama3Format(llama3).render(pictures.messages)
    tokens = prompt.encode(llama3)
    images = pictures.placed(tokens, prompt.images)
    assert [tokens[p] for image in images for p in image.positions] == [IMAGE, IMAGE]
    assert images[1].positions[0] == images[0].positions[0] + 1
    assert [image.grid for image in images] == [(1, 4), (1, 1)]


def test_messages_without_images_stay_as_they_are() -> None:
    messages = read_messages([{"role": "user", "content": "hello"}])
    pictures = PromptImages(messages, BLIND, False)
    assert pictures.messages == messages and pictures.placed([1, 2, 3], ()) == ()


@pytest.mark.parametrize(
    ("shape", "runs", "error", "said"),
    [
        (BLIND, False, UnsupportedModel, r"messages\[0\] has an image, but tiny reads only text: use a vision model"),
        (SEES4, False, UnsupportedModel, r"messages\[0\] has an image, .* load it with runtime='torch'"),
    ],
)
def test_who_cannot_see_says_so(shape: ModelConfig, runs: bool, error: type[HerderError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        PromptImages(asked("Look", SQUARE), shape, runs)
    assert "\n" not in str(caught.value)


def test_an_image_that_nobody_has_fetched_is_not_seen() -> None:
    link = ImageLink(url="https://example.org/a.png", where="messages[0].content")
    with pytest.raises(UsageError, match=r"^messages\[0\].content is a URL that nobody has fetched"):
        PromptImages([Message("user", parts=(link,))], SEES4, True)


def test_a_damaged_image_is_named() -> None:
    with pytest.raises(UsageError, match=r"^messages\[0\].content\[1\] is a damaged PNG file"):
        PromptImages(asked("Look", STRIP[:200]), SEES4, True)


def test_a_chat_format_that_forgets_images_is_found_out(llama4: Tokenizer) -> None:  # noqa: F811
    pictures = PromptImages(asked(SQUARE), SEES4, True)
    with pytest.raises(UnsupportedModel, match="put 0 image tokens into the prompt, where it needs 1"):
        pictures.placed([1, 2, 3], ())
    part = pictures.messages[0].images[0]
    with pytest.raises(UnsupportedModel, match="put 2 image tokens into the prompt, where it needs 1"):
        pictures.placed([PATCH, PATCH], (part,))


class Spelled:
    """A chat format for a vocabulary of 100 tokens, of which 99 stands for a tile."""

    name = "spelled"
    stop_ids: frozenset[int] = frozenset()

    def render(self, messages: Sequence[Message], **_: Any) -> Prompt:
        images = tuple(image for message in messages for image in message.images)
        segments = [Control(1, "<s>")]
        for image in images:
            assert image.grid is not None
            tiles = image.grid[0] * image.grid[1]
            segments += [Control(99, "<tile>")] * (tiles + (tiles > 1)) + [Control(2, "</s>")]
        return Prompt(tuple(segments), images)

    def parse(self, answer: Any, **_: Any) -> Message:
        return Message("assistant", "")


def make(tokenizer: Tokenizer, context: int = 64) -> LLM:
    limits = Limits(pages=8, context=context, batch_tokens=16, batch_chunks=4, vocab=100, images=True)
    return LLM(
        engine=Engine(FakeExecutor(limits, dim=4)),
        tokenizer=tokenizer,
        config=config(LLAMA4, 99),
        chat_format=Spelled(),
        chat_sampling=Sampling(),
    )


def test_chat_shows_the_engine_what_was_sent(llama4: Tokenizer) -> None:  # noqa: F811
    with make(llama4) as llm:
        answers = {}
        for name, part in (("strip", STRIP), ("square", SQUARE), ("other", file_of(picture(28, 28, seed=5)))):
            pictures = PromptImages(asked(part), llm.config, True)
            prompt = Spelled().render(pictures.messages)
            tokens = prompt.encode(llama4)
            images = pictures.placed(tokens, prompt.images)
            want = reference(FakeModel(100), tokens, 8, Sampling(), 0, images=images)
            message = {"role": "user", "content": [{"type": "image", "image": part}]}
            got = llm.chat([message], max_tokens=8, ignore_eos=True)
            later = asyncio.run(llm.achat([message], max_tokens=8, ignore_eos=True))
            assert list(got.tokens) == list(later.tokens) == want
            answers[name] = got.tokens
        assert answers["square"] != answers["other"]


def test_images_that_do_not_fit(llama4: Tokenizer) -> None:  # noqa: F811
    parts = [{"type": "image", "image": STRIP}] * 4
    with make(llama4, context=16) as llm, pytest.raises(ContextOverflow, match="20 of them for 4 images"):
        llm.chat([{"role": "user", "content": parts}], max_tokens=1)
