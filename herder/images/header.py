"""What the first bytes of an image file say: its format, width and height, read before anything is decoded.

Layouts: PNG (W3C PNG, 5.2 and 11.2.2), JPEG (ITU-T T.81, B.2.2), GIF89a (section 18), BMP (BITMAPCOREHEADER and
BITMAPINFOHEADER), WebP (RFC 9649, 2.4 to 2.7).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from herder.core.errors import UsageError

FORMATS = ("PNG", "JPEG", "WebP", "GIF", "BMP")
MAX_SEGMENTS = 4096  # of a JPEG before its frame header: metadata in pieces of 64 KiB, so far beyond any file we accept

# Frame headers of JPEG: SOF0..SOF15 but for DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length: TEM, RST0..RST7


class Header(NamedTuple):
    """format: one of FORMATS. width, height: pixels, as stored (before any rotation that EXIF asks for)."""

    format: str
    width: int
    height: int


def read_header(data: bytes, where: str = "image") -> Header:
    """Raises UsageError for a file that is none of FORMATS, or that ends before it says how large it is."""
    try:
        found = _read(data)
    except (struct.error, IndexError):
        raise UsageError(f"{where} ends before its header does ({len(data)} bytes): send the whole file") from None
    if found is None:
        begins = data[:8].hex(" ") or "nothing"
        raise UsageError(f"{where} is not in a known image format (it begins with {begins}): send {', '.join(FORMATS)}")
    if found.width < 1 or found.height < 1:
        raise UsageError(f"{where} is {found.width} x {found.height} pixels large: an image has at least one")
    return found


def _read(data: bytes) -> Header | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
        return Header("PNG", width, height) if (length, kind) == (13, b"IHDR") else None
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("GIF", *struct.unpack_from("<HH", data, 6))
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def _jpeg(data: bytes) -> Header | None:
    at = 2
    for _ in range(MAX_SEGMENTS):
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:  # any number of fill bytes may come before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker in _ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES:
            _, height, width = struct.unpack_from(">BHH", data, at + 2)
            return Header("JPEG", width, height)
        if marker in (0xD9, 0xDA) or length < 2:  # the end, or pixels, before any frame header
            return None
        at += length
    return None


def _bmp(data: bytes) -> Header | None:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        return Header("BMP", *struct.unpack_from("<HH", data, 18))
    if size < 40:
        return None
    width, height = struct.unpack_from("<ii", data, 18)
    return Header("BMP", width, abs(height))  # negative: rows from top to bottom


def _webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return Header("WebP", 1 + _int24(data, 24), 1 + _int24(data, 27))
    if kind == b"VP8L":
        signature, packed = struct.unpack_from("<BI", data, 20)
        return Header("WebP", 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)) if signature == 0x2F else None
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", data, 23)
        return Header("WebP", width & 0x3FFF, height & 0x3FFF) if start == b"\x9d\x01\x2a" else None
    if len(kind) < 4:
        raise IndexError
    return None


def _int24(data: bytes, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low | high << 16)
