"""What an image file costs to decode beside its pixels: scans, chunks and segments, refused where nobody needs so many.

A scan of a progressive JPEG may be 16 bytes long and goes over the whole picture (about 1 ns a pixel); Pillow reads
chunks, segments and extensions in Python (2 to 6 us each), and so the rows of a BMP with run lengths. All of it within
the bounds of a file's bytes and pixels, so these have bounds of their own. Layouts: see header.py.
"""

from __future__ import annotations

import re
import struct

from herder.core.errors import UsageError

MAX_SCANS = 40  # libjpeg's own scripts have 10 for a colour picture, 18 with four channels
MAX_PIECES = 1 << 14  # of metadata and data: an IDAT chunk of PNG has 8 KiB in most files, where 32 MiB are the most

_RUN_LENGTHS = (1, 2)  # BI_RLE8, BI_RLE4
# Neither fill bytes, nor what stands between or in a scan's data: FF 00, TEM, RST0 to RST7.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)


def check_structure(data: bytes, form: str, where: str) -> None:
    """Raises UsageError. form: one of header.FORMATS, which the file's header is in. A file that ends early is for the
    decoder to refuse."""
    scans = pieces = 0
    try:
        match form:
            case "PNG":
                pieces = _chunks(data)
            case "JPEG":
                scans, pieces = _segments(data)
            case "GIF":
                pieces = _extensions(data)
            case "BMP" if data[14] >= 40 and data[30] in _RUN_LENGTHS:  # the header's size and its compression
                raise UsageError(f"{where} is a BMP with run-length encoding, which is not read: send it as PNG")
    except (struct.error, IndexError):
        return
    if scans > MAX_SCANS:
        raise UsageError(f"{where} is a JPEG of more than {MAX_SCANS} scans: save it anew")
    if pieces > MAX_PIECES:
        raise UsageError(f"{where} has more than {MAX_PIECES} pieces of data and metadata: save it anew")


def _chunks(data: bytes) -> int:
    at, count = 8, 0
    while at < len(data) and count <= MAX_PIECES:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            break
        at += 12 + length
        count += 1
    return count


def _segments(data: bytes) -> tuple[int, int]:
    """Scans, and all segments with them."""
    at, scans, count = 2, 0, 0
    while count <= MAX_PIECES and scans <= MAX_SCANS and (found := _MARKER.search(data, at)):
        at, marker = found.end(), data[found.end() - 1]
        if marker == 0xD9:
            break
        if marker != 0xD8:
            at += int(struct.unpack_from(">H", data, at)[0])
        scans += marker == 0xDA
        count += 1
    return scans, count


def _extensions(data: bytes) -> int:
    """Blocks before the first frame."""
    at, count = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0), 0
    while data[at] == 0x21 and count <= MAX_PIECES:
        at += 2
        count += 1
        while data[at] and count <= MAX_PIECES:
            at += 1 + data[at]
            count += 1
        at += 1
    return count
