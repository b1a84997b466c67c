"""The Llama 4 chat format, rendered and parsed in code: Llama 3's with other tokens, and images that are read as text.

    <|begin_of_text|> then, for each message,
    <|header_start|>{role}<|header_end|>\\n\\n{content}<|eot|>

A tool's result (role ipython) and an assistant's message with calls end in <|eom|>; built-in calls and code stand
between <|python_start|> and <|python_end|>. An image of one tile, and one of several with the whole at the end, are

    <|image_start|><|image|>{patches}<|image_end|>
    <|image_start|>{patches}<|tile_x_separator|>{patches}<|tile_y_separator|>...<|image|>{patches}<|image_end|>

with as many <|patch|> as a tile has tokens (144 in the published models) for each {patches}.

This is Meta's encoder (llama-models, llama4/chat_format.py); calls are a Python list, as Meta's documentation has them.
Hugging Face's template asks for JSON instead (tool_notation="json"), and ends every message in <|eot|>. Neither writes
a date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from herder.chat.format import Control, Segment
from herder.chat.llama3 import IMAGE, Llama3Format, is_builtin
from herder.chat.message import ImagePart, Message, ToolCall
from herder.core.errors import UsageError


class Llama4Format(Llama3Format):
    """See the module. Raises UnsupportedModel when the vocabulary lacks the format's control tokens."""

    name = "llama4"
    header: ClassVar[tuple[str, str]] = ("<|header_start|>", "<|header_end|>")
    turn_end: ClassVar[str] = "<|eot|>"
    message_end: ClassVar[str] = "<|eom|>"
    python: ClassVar[tuple[str, str | None]] = ("<|python_start|>", "<|python_end|>")
    options: ClassVar[tuple[str, ...]] = ("tool_notation",)
    notation: ClassVar[str] = "python"

    @classmethod
    def needed(cls) -> tuple[str, ...]:
        return (*super().needed(), "<|eom|>", "<|python_start|>", "<|python_end|>")

    def _check_image_among_tools(self, i: int, calling: bool) -> None:
        """Llama 4 calls tools whatever it sees."""

    def _in_order(self, message: Message) -> Sequence[str | ImagePart]:
        if not message.images:
            return super()._in_order(message)
        return [part for part in message.parts or () if part != ""]

    def _image(self, image: ImagePart) -> list[Segment]:
        return image_layout(image, self._ids)

    def _tagged(self, found: Sequence[ToolCall], ipython: bool) -> bool:
        return any(is_builtin(call) for call in found)

    def _end(self, message: Message, tagged: bool) -> str:
        return self.message_end if message.tool_calls or message.role in ("tool", "ipython") else self.turn_end


def image_layout(image: ImagePart, ids: Mapping[str, int]) -> list[Segment]:
    """The tokens that stand for an image (see the module). ids: those of the control tokens.

    Raises UsageError for an image that has not been cut into tiles.
    """
    if image.grid is None or image.tile_tokens < 1:
        raise UsageError("an image has not been cut into tiles: Llama 4's prompt needs to know how many there are")
    rows, columns = image.grid

    def token(spelling: str) -> Segment:
        return Control(ids[spelling], spelling)

    patches = [token("<|patch|>")] * image.tile_tokens
    segments = [token("<|image_start|>")]
    if rows * columns > 1:
        for _ in range(rows):
            for column in range(columns):
                segments += [token("<|tile_x_separator|>")] if column else []
                segments += patches
            segments.append(token("<|tile_y_separator|>"))
    return [*segments, token(IMAGE), *patches, token("<|image_end|>")]
