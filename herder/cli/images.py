"""An image file as a part of a message, looked at before any model is loaded."""

from __future__ import annotations

from typing import Any


def image_part(path: str) -> dict[str, Any]:
    """{"type": "image_url", ...} with the file in it, so that a saved conversation needs no other file.

    Raises UsageError for a file that cannot be read or is no image; what only decoding finds out comes later.
    """
    import base64

    from herder.chat.images import read
    from herder.images.header import read_header

    data = read(path, path, files=True)
    kind = read_header(data, path).format.lower()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}
