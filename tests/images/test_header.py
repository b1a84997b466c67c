"""Formats and sizes from the first bytes, compared with Pillow's, and files that lie or are none."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from herder.core.errors import UsageError
from herder.images.header import read_header
from tests.images.pictures import FORMATS, file_of, picture

SIZES = ((1, 1), (3, 40), (257, 130))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_the_size_is_the_one_pillow_reads(form: str, size: tuple[int, int]) -> None:
    data = file_of(picture(*size), form)
    header = read_header(data)
    assert (header.height, header.width) == size
    assert header.format.upper() == form == Image.open(io.BytesIO(data)).format


@pytest.mark.parametrize(
    ("form", "options"),
    [("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}), ("JPEG", {"progressive": True})],
)
def test_variants(form: str, options: dict[str, object]) -> None:
    header = read_header(file_of(picture(37, 91), form, **options))
    assert (header.height, header.width) == (37, 91)


def test_a_jpeg_with_fill_bytes_and_a_long_comment() -> None:
    data = file_of(picture(20, 30), "JPEG")
    padded = data[:2] + b"\xff\xff\xff\xfe\xff\xff" + b"x" * 65533 + data[2:]
    assert read_header(padded)[1:] == (30, 20)


def test_old_and_upside_down_bmp() -> None:
    core = b"BM" + bytes(12) + (12).to_bytes(4, "little") + (7).to_bytes(2, "little") + (9).to_bytes(2, "little")
    assert read_header(core) == ("BMP", 7, 9)
    down = bytearray(file_of(picture(9, 7), "BMP"))
    down[22:26] = (-9).to_bytes(4, "little", signed=True)
    assert read_header(bytes(down)) == ("BMP", 7, 9)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%PDF-1.7", b"\x89PNG\r\n\x1a\nabcdefgh12345678", b"\xff\xd8\xff\xd9"]
)
def test_no_image(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"^the file (is not in a known image format|ends before)"):
        read_header(data, "the file")


def test_no_pixels() -> None:
    data = bytearray(file_of(picture(4, 4)))
    data[16:20] = bytes(4)
    with pytest.raises(UsageError, match="0 x 4 pixels"):
        read_header(bytes(data))


@pytest.mark.parametrize("form", FORMATS)
def test_a_header_cut_anywhere_is_refused_or_read_right(form: str) -> None:
    data = file_of(picture(20, 30), form)
    for length in range(min(len(data), 700)):
        try:
            header = read_header(data[:length])
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert header[1:] == (30, 20)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"]), st.binary()
)
def test_any_bytes_are_an_image_or_a_user_error(start: bytes, rest: bytes) -> None:
    try:
        header = read_header(start + rest)
    except UsageError:
        return
    assert header.width > 0 and header.height > 0
