"""A model for tests of the server that sees: its answers are noise, but another one for another image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from herder.chat.format import Control, Prompt
from herder.chat.message import Message
from herder.core.request import Sampling
from herder.engine.engine import Engine
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor
from tests.images.pictures import LLAMA4
from tests.serve.models import CONFIG, LIMITS, tiny


class Seeing:
    """The tiny models' chat format, with a token before the text for each tile of an image."""

    def __init__(self, token: int) -> None:
        self._token, self._plain = token, tiny()[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def render(self, messages: Sequence[Message], **options: Any) -> Prompt:
        images = tuple(image for message in messages for image in message.images)
        marks = []
        for image in images:
            assert image.grid is not None
            tiles = image.grid[0] * image.grid[1]
            marks += [Control(self._token, "<tile>")] * (tiles + (tiles > 1))
        prompt = self._plain.render([replace(message, parts=None) for message in messages], **options)
        return Prompt((*marks, *prompt.segments), images)


def seeing_llm() -> LLM:
    tokenizer, _ = tiny()
    [token] = tokenizer.encode("\0", bos=False)  # which no text has
    return LLM(
        engine=Engine(FakeExecutor(replace(LIMITS, images=True), dim=CONFIG.dim)),
        tokenizer=tokenizer,
        config=replace(CONFIG, vision=LLAMA4, image_token=token),
        chat_format=Seeing(token),
        chat_sampling=Sampling(),
    )
