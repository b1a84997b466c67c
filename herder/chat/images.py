"""Images as messages hold them (data URLs, paths, bytes, Pillow's objects) -> the bytes of an image file.

Nothing is decoded here: herder.images does that, when a model that sees is given them. Nothing is fetched either.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Any

from herder.core.errors import UsageError
from herder.core.sizes import bound_text
from herder.images.decode import MAX_BYTES, MAX_PIXELS

# RFC 2397; the parameters (charset and the like) say nothing about an image.
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)((?:;[\w.+-]+=[\w.+-]+)*)(;base64)?,", re.ASCII | re.IGNORECASE)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,15}):")


def read(value: Any, where: str, *, files: bool) -> bytes:
    """The file's bytes. value: bytes, a path, a data URL, or a Pillow image (written as PNG, which loses nothing).

    files: whether a path is allowed. Raises UsageError for anything else, a file that cannot be read, and more than
    MAX_BYTES.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return _checked(bytes(value), where)
    if isinstance(value, str) and ("://" in value[:19] or value[:5].lower() == "data:"):
        return read_url(value, where)
    if isinstance(value, str | os.PathLike):
        if not files:
            raise UsageError(f"{where} is a path: send the image itself, as a data URL")
        return _file(value, where)
    if callable(getattr(value, "save", None)) and isinstance(getattr(value, "size", None), tuple):
        return _pillow(value, where)
    raise UsageError(f"{where} is {type(value).__name__}: expected bytes, a path, a data URL or a Pillow image")


def is_link(url: str) -> bool:
    """Whether this is a URL of the web."""
    scheme = _SCHEME.match(url)
    return scheme is not None and scheme[1].lower() in ("http", "https")


def read_url(url: str, where: str) -> bytes:
    """The bytes in a data URL. Raises UsageError for a URL that would have to be fetched."""
    scheme = _SCHEME.match(url)
    if scheme is not None and scheme[1].lower() != "data":
        raise UsageError(
            f"{where} is a URL to fetch ({scheme[1]}): send the image itself, as data:image/...;base64,..."
        )
    match = _DATA_URL.match(url)
    if match is None or match[3] is None:
        raise UsageError(f"{where} is no data URL with base64: expected data:image/...;base64,...")
    if not match[1].lower().startswith("image/"):
        raise UsageError(f"{where} is of type {match[1]}: expected an image")
    if len(url) - match.end() > MAX_BYTES // 3 * 4 + 4:
        raise UsageError(f"{where} is larger than {bound_text(MAX_BYTES)}: send a smaller image")
    try:
        return _checked(base64.b64decode(url[match.end() :], validate=True), where)
    except (binascii.Error, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{where} is damaged: its base64 does not decode") from None


def check_detail(value: Any, where: str) -> None:
    """Raises UsageError unless `value` (OpenAI's `detail`) is None, auto or high.

    An image is always cut into as many tiles as the model's own rules say, which is what both ask for.
    """
    if value == "low":
        raise UsageError(
            f"{where} is 'low': images are always cut into tiles as the model was trained; send a smaller one"
        )
    if value not in (None, "auto", "high"):
        raise UsageError(f"{where} is {value!r:.40}: expected auto or high")


def _file(path: str | os.PathLike[str], where: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return _checked(file.read(MAX_BYTES + 1), where)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise UsageError(f"{where}: cannot read {str(path)[:200]!r}: {reason}") from None


def _pillow(image: Any, where: str) -> bytes:
    import io

    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise UsageError(f"{where} has {width} x {height} pixels: at most {MAX_PIXELS} are read")
    file = io.BytesIO()
    try:
        image.save(file, "PNG")
    except (OSError, ValueError) as error:  # a mode that PNG lacks, such as CMYK
        raise UsageError(f"{where} cannot be written as PNG ({error}): convert it to RGB") from None
    return _checked(file.getvalue(), where)


def _checked(data: bytes, where: str) -> bytes:
    if not data:
        raise UsageError(f"{where} is empty: expected an image file")
    if len(data) > MAX_BYTES:
        raise UsageError(f"{where} is larger than {bound_text(MAX_BYTES)}: send a smaller image")
    return data
