"""Files whose pixels are few and whose decoding is long: refused before Pillow sees them."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from herder.core.errors import UsageError
from herder.images.decode import read_rgb
from herder.images.structure import MAX_PIECES, MAX_SCANS, check_structure
from tests.images.pictures import FORMATS, file_of, picture

MANY = MAX_PIECES + 1


def progressive(scans: int) -> bytes:
    """The last scan so often that there are so many."""
    data = file_of(picture(40, 50), "JPEG", progressive=True)
    first, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[first:end] * (scans - data.count(b"\xff\xda")) + data[end:]


def inserted(form: str, piece: bytes, count: int = MANY) -> bytes:
    """Pieces of metadata before the first data."""
    data = file_of(picture(6, 7), form)
    at = {"PNG": 33, "JPEG": data.find(b"\xff\xda"), "GIF": 13 + (3 << (data[10] & 7) + 1)}[form]
    return data[:at] + piece * count + data[at:]


CHUNK = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
PIECES = [("PNG", CHUNK), ("JPEG", b"\xff\xfe\0\2"), ("GIF", b"\x21\xfe\x01x\0")]


@pytest.mark.parametrize(("form", "piece"), PIECES)
def test_pieces_of_metadata(form: str, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_rgb(inserted(form, piece, 100)).shape == (6, 7, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UsageError, match=f"more than {MAX_PIECES} pieces"):
        read_rgb(inserted(form, piece))


def test_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_rgb(progressive(MAX_SCANS)).shape == (40, 50, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UsageError, match=f"more than {MAX_SCANS} scans"):
        read_rgb(progressive(MAX_SCANS + 1))


def test_what_stands_behind_the_picture_does_not_count() -> None:
    """A phone's "motion photo" is a JPEG with a film behind it."""
    data = file_of(picture(40, 50), "JPEG") + b"\xff\xda\0\2" * (MAX_SCANS + 1)
    assert read_rgb(data).shape == (40, 50, 3)


def test_run_lengths() -> None:
    data = bytearray(file_of(Image.new("L", (4, 4)), "BMP"))
    data[30:34] = struct.pack("<I", 1)
    with pytest.raises(UsageError, match="run-length encoding"):
        read_rgb(bytes(data))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_ends_early_is_left_to_the_decoder(form: str) -> None:
    data = file_of(picture(20, 30), form)
    name = Image.open(io.BytesIO(data)).format or ""
    for end in range(30, len(data), 7):
        check_structure(data[:end], name.replace("WEBP", "WebP"), "image")
