"""Image files to pixels: modes, orientation, limits, damage."""

from __future__ import annotations

import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from herder.core.errors import UnsupportedModel, UsageError
from herder.images import decode
from herder.images.decode import read_rgb
from tests.images.pictures import FORMATS, file_of, picture

LOSSLESS = {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_give_their_pixels(form: str) -> None:
    pixels = picture(31, 47)
    np.testing.assert_array_equal(read_rgb(file_of(pixels, form, **LOSSLESS[form])), pixels)


@pytest.mark.parametrize("form", ["JPEG", "GIF"])
def test_other_formats_come_near(form: str) -> None:
    slope = np.linspace(0, 255, 32 * 48).reshape(32, 48, 1).repeat(3, 2).astype(np.uint8)
    got = read_rgb(file_of(slope, form)).astype(int)
    assert got.shape == slope.shape and np.abs(got - slope).max() < 12


def test_modes_become_rgb() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    three = grey[..., None].repeat(3, 2)
    np.testing.assert_array_equal(read_rgb(file_of(Image.fromarray(grey))), three)
    deep = (grey.astype(np.uint16) << 8) | 0x7F
    np.testing.assert_array_equal(read_rgb(file_of(Image.fromarray(deep))), three)
    black_and_white = Image.fromarray(grey > 100)
    np.testing.assert_array_equal(read_rgb(file_of(black_and_white))[..., 0], np.where(grey > 100, 255, 0))
    palette = Image.fromarray(three).quantize(12)
    np.testing.assert_array_equal(read_rgb(file_of(palette)), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(picture(16, 16)).convert("CMYK")
    assert read_rgb(file_of(cmyk, "JPEG")).shape == (16, 16, 3)


def test_transparency_shows_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3] = 255
    rgba[1, 0, 3] = 128
    got = read_rgb(file_of(Image.fromarray(rgba)))
    np.testing.assert_array_equal(got[0], [[200, 0, 0]] * 3)
    np.testing.assert_array_equal(got[1, 1:], [[255, 255, 255]] * 2)
    assert abs(int(got[1, 0, 1]) - 127) <= 1
    grey = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8))
    np.testing.assert_array_equal(read_rgb(file_of(grey))[0, :, 0], [255, 10])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 50, 60, 70])
    np.testing.assert_array_equal(read_rgb(file_of(palette, "PNG", transparency=0))[0], [[255] * 3, [50, 60, 70]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    from PIL import ImageOps

    image = Image.fromarray(picture(5, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(image, "PNG", exif=exif)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(read_rgb(data), np.asarray(ImageOps.exif_transpose(image)))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (40, 200)]
    for form in ("GIF", "WEBP"):
        data = file_of(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
        assert read_rgb(data).shape == (6, 8, 3) and abs(int(read_rgb(data)[0, 0, 0]) - 40) <= 1


# Limits --------------------------------------------------------------------------------------------------------------
def png_header(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30000, 30000), (2**31 - 1, 2**31 - 1), (70000, 1)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UsageError, match=f"{size[0]} x {size[1]} pixels: at most .* scale it down"):
        read_rgb(png_header(*size))


def test_a_large_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 100)
    with pytest.raises(UsageError, match="file of 101 bytes: at most 100"):
        read_rgb(bytes(101))


def test_fewer_pixels_than_the_header_says() -> None:
    with pytest.raises(UsageError, match="damaged PNG file"):
        read_rgb(png_header(50, 50, b"\0" * 40))


def test_a_switch_of_pillow_that_others_have_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-models' preprocessing sets it for the whole process when it is imported."""
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="damaged PNG file"):
        read_rgb(png_header(50, 50, b"\0" * 40))
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_gif_whose_frame_is_larger_than_the_picture() -> None:
    data = bytearray(file_of(picture(20, 20), "GIF"))
    data[6:10] = struct.pack("<HH", 4, 4)
    with pytest.raises(UsageError, match="damaged GIF file"):
        read_rgb(bytes(data))


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UnsupportedModel, match=r"^images need Pillow, .*: pip install 'herder\[torch\]'$"):
        read_rgb(b"")


# Damage --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMATS)
def test_cut_anywhere_it_is_refused_or_complete(form: str) -> None:
    data = file_of(picture(24, 30), form)
    whole = read_rgb(data)
    lengths = range(0, len(data), max(1, len(data) // 250))
    for length in [*lengths, *range(len(data) - 12, len(data))]:
        try:
            got = read_rgb(data[:length])
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert length >= len(data) - 20  # what follows the pixels may be missing
            np.testing.assert_array_equal(got, whole)


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about EXIF that it cannot read
def test_changed_bytes_give_pixels_or_a_user_error(data: st.DataObject) -> None:
    changed = bytearray(_FILES[data.draw(st.sampled_from(FORMATS))])
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = read_rgb(bytes(changed))
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


_FILES = {form: file_of(picture(12, 17), form) for form in FORMATS}
