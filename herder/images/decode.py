"""The bytes of an image file -> RGB pixels, as its maker would see them.

    read_rgb(data) -> uint8 (height, width, 3)

PNG, JPEG, WebP, GIF and BMP; of an animation, the first frame. What is decided here:

- Limits are checked in the file's header, before anything is decoded: MAX_BYTES, MAX_PIXELS, MAX_SIDE;
  so is what a file may cost beside its pixels (structure.py).
- A file that ends before its pixels do is refused, unless the process has told Pillow to fill them up
  (LOAD_TRUNCATED_IMAGES, as Meta's preprocessing does).
- EXIF orientation is applied, as Hugging Face's load_image does: the model sees what a viewer shows. Meta's does not.
- Transparency is laid over white, as Meta's Llama 4 does (llama4/chat_format.py, convert_image_to_rgb).
- 16-bit greyscale keeps its high byte, as Pillow does with 16-bit colour. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

from herder.core.errors import UnsupportedModel, UsageError
from herder.core.sizes import bound_text
from herder.images.header import FORMATS, read_header
from herder.images.structure import check_structure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_BYTES = 32 << 20  # of one image file
MAX_PIXELS = 1 << 26  # 8192 x 8192; three bytes each, so 192 MiB decoded
MAX_SIDE = 1 << 16

_STRICT = threading.Lock()  # held while Pillow's switch for the whole process is ours
_ORIENTATION = 0x0112
# EXIF 2.32, 4.6.4 (A): where row 0 and column 0 of the stored picture are; and how to turn it upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip


def pillow() -> Any:
    """PIL.Image. Raises UnsupportedModel when Pillow is not installed."""
    try:
        import PIL.Image
    except ImportError:
        raise UnsupportedModel("images need Pillow, which is not installed: pip install 'herder[torch]'") from None
    return PIL.Image


def read_rgb(data: bytes, where: str = "image") -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 (height, width, 3), rows from top to bottom.

    where: what messages call it. Raises UsageError for a file that is too large, damaged, or of another format.
    """
    import numpy as np

    library = pillow()
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"{where} is a file of {len(data)} bytes: at most {bound_text(MAX_BYTES)} are read, so send a smaller one"
        )
    header = read_header(data, where)
    width, height = header.width, header.height
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UsageError(
            f"{where} has {width} x {height} pixels: at most {MAX_PIXELS} are read, {MAX_SIDE} a side; scale it down"
        )
    check_structure(data, header.format, where)
    try:
        with library.open(io.BytesIO(data), formats=[name.upper() for name in FORMATS]) as image:
            if image.size != (width, height):
                raise ValueError(f"two headers disagree: {width} x {height} and {image.size[0]} x {image.size[1]}")
            _load(image)
            if image.size != (width, height):  # a frame may reach beyond the picture that holds it
                raise ValueError(f"a frame of {image.size[0]} x {image.size[1]} does not fit {width} x {height}")
            rgb = np.array(_rgb(image, library))
    except Exception as error:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, struct.error ...
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{where} is a damaged {header.format} file ({said}): send it again, whole") from None
    return rgb


def _load(image: Any) -> None:
    """Decodes it, and raises when the file ends early, whatever others in this process have told Pillow: some libraries
    switch its check off, for all, when they are imported."""
    from PIL import ImageFile

    with _STRICT:
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            image.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _rgb(image: Any, library: Any) -> Any:
    """The same picture in mode RGB, opaque, upright."""
    if image.mode.startswith("I"):  # 16 bits of grey; convert() would cut them off at 255
        rgb = _high_byte(image, library).convert("RGB")
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        rgb = library.new("RGB", image.size, (255, 255, 255))
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return rgb if turn is None else rgb.transpose(library.Transpose[turn])


def _high_byte(image: Any, library: Any) -> Any:
    import numpy as np

    grey = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
    return library.fromarray(grey.astype(np.uint8))
