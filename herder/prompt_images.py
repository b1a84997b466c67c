"""The images of a conversation: cut for the model before its prompt is rendered, found among the tokens afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from herder.chat.message import ImageLink, ImagePart, Message
from herder.core.config import ModelConfig
from herder.core.errors import UnsupportedModel, UsageError
from herder.core.request import Image

if TYPE_CHECKING:
    from herder.images.prepare import Prepared, Preparer


class PromptImages:
    """The images of some messages, for one model.

    messages: those given, each image with the grid and the tokens it has in this model's prompt. preparer: of this
    model's, to remember images from one conversation's turn to the next.
    Raises UnsupportedModel when the model or its runtime takes no images (runs_images: Limits.images), UsageError for
    an image that cannot be read.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        config: ModelConfig,
        runs_images: bool,
        preparer: Preparer | None = None,
    ) -> None:
        self._config, self._preparer = config, preparer
        self._prepared: dict[int, Prepared] = {}  # by id() of the part, which self.messages keep
        self.messages = list(messages)
        for at, message in enumerate(self.messages):
            if message.images:
                self._refuse(f"messages[{at}]", runs_images)
                parts = tuple(self._parts(message, f"messages[{at}]"))
                self.messages[at] = replace(message, parts=parts)

    def placed(self, tokens: Sequence[int], parts: Sequence[ImagePart]) -> tuple[Image, ...]:
        """The images of a rendered prompt, at the positions of their tokens. parts: in the prompt's order.

        Raises UnsupportedModel when the prompt does not have the tokens that its images need.
        """
        if not self._prepared and not parts:
            return ()
        places = [position for position, token in enumerate(tokens) if token == self._config.image_token]
        needed = sum(map(_tokens, self._prepared.values()))
        if len(parts) != len(self._prepared) or len(places) != needed:
            raise UnsupportedModel(
                f"the chat format put {len(places)} image tokens into the prompt, where it needs {needed}: it does not "
                "know this model's images"
            )
        images = []
        for part in parts:
            one = self._prepared[id(part)]
            count = _tokens(one)
            images.append(Image(one.pixels, one.grid, tuple(places[:count]), one.key))
            del places[:count]
        return tuple(images)

    def _refuse(self, where: str, runs_images: bool) -> None:
        name = self._config.name or "this model"
        if self._config.vision is None:
            raise UnsupportedModel(
                f"{where} has an image, but {name} reads only text: use a vision model, or leave it out"
            )
        if not runs_images:
            raise UnsupportedModel(
                f"{where} has an image, which {name} sees only on PyTorch: load it with runtime='torch' "
                "(--runtime torch)"
            )

    def _parts(self, message: Message, where: str) -> Iterator[str | ImagePart]:
        from herder.images.prepare import Preparer

        assert self._config.vision is not None
        prepare = self._preparer or Preparer(self._config.vision)
        for at, part in enumerate(message.parts or ()):
            if isinstance(part, ImageLink):
                raise UsageError(f"{part.where} is a URL that nobody has fetched: give the image itself")
            if isinstance(part, ImagePart):
                cut = prepare(part.data, f"{where}.content[{at}]")
                part = replace(part, grid=cut.grid, tile_tokens=cut.tile_tokens)
                self._prepared[id(part)] = cut
            yield part


def _tokens(image: Prepared) -> int:
    """How many of the prompt's tokens stand for it."""
    return len(image.pixels) * image.tile_tokens or 1
