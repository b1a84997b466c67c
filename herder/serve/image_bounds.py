"""How many images a request may have, and of how many pixels together: from their headers, before any is decoded."""

from __future__ import annotations

from herder.chat.message import ImageLink
from herder.core.errors import UsageError
from herder.images.decode import MAX_PIXELS
from herder.images.header import read_header
from herder.serve.config import Limits
from herder.serve.fields import FieldError
from herder.serve.wire import ChatRequest


def check_bounds(wanted: object, limits: Limits) -> None:
    """Raises FieldError with the numbers. An image that is still a link counts, but has no pixels yet; so has one whose
    header cannot be read or that is too large by itself, which the decoder refuses by its place."""
    if not isinstance(wanted, ChatRequest):
        return
    images = [part for message in wanted.messages for part in message.images]
    if len(images) > limits.images:
        raise FieldError(f"the request has {len(images)} images: at most {limits.images} are taken, leave some out")
    pixels = sum(_pixels(part.data) for part in images if not isinstance(part, ImageLink))
    if pixels > limits.image_pixels:
        raise FieldError(
            f"the request has images of {pixels} pixels together: at most {limits.image_pixels} are "
            "read, scale them down or leave some out"
        )


def _pixels(data: bytes) -> int:
    try:
        header = read_header(data)
    except UsageError:
        return 0
    pixels = header.width * header.height
    return pixels if pixels <= MAX_PIXELS else 0
