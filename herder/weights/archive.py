"""Zip archives of uncompressed files, as torch.save writes them: the name, place and size of each file, without a copy.

Layout (APPNOTE.TXT of PKWARE, 4.3): files, each after a local header; a central directory with a header a file; its
place in the last record. Numbers too large for 32 bits are in zip64 fields. The central directory is the truth, as for
every reader; each local header must name the same file, and no two files may overlap. Compressed and encrypted files
are refused: their numbers could not be mapped.

Headers are read and not mapped, so that a file truncated meanwhile gives a short read and not a SIGBUS.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple, NoReturn

from herder.core.errors import ModelFileError
from herder.weights.fields import short
from herder.weights.mapping import MappedFile

MAX_DIRECTORY = 16 << 20  # bytes; 100,000 files with names of 100 characters
MAX_NAME = 1024
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_COMMENT = 0xFFFF


class Member(NamedTuple):
    """A file of the archive: offset of its first byte in the archive, and its size in bytes."""

    name: str
    offset: int
    size: int


def read_archive(file: MappedFile) -> dict[str, Member]:
    """Every file of the archive by name. Raises ModelFileError."""
    return _Archive(file).members()


class _Archive:
    def __init__(self, file: MappedFile) -> None:
        self._file = file

    def _fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self._file.path} {problem}: the file is damaged or incomplete, download it again")

    def _read(self, offset: int, count: int, what: str) -> bytes:
        if not 0 <= offset <= self._file.size - count:
            self._fail(f"has its {what} at byte {offset}, outside its {self._file.size} bytes")
        raw = self._file.read(offset, count)
        if len(raw) != count:
            self._fail("became shorter while it was read")
        return raw

    def members(self) -> dict[str, Member]:
        count, size, start = self._directory()
        if size > MAX_DIRECTORY:
            self._fail(f"has a directory of {size} bytes (at most {MAX_DIRECTORY})")
        raw = self._read(start, size, "directory")
        members: dict[str, Member] = {}
        extents = [(start, start + size, "the directory")]
        at = 0
        for _ in range(count):
            at, member, local = self._entry(raw, at)
            if member.name in members:
                self._fail(f"has the file {short(member.name)} twice")
            placed = self._place(member, local)
            members[member.name] = placed
            extents.append((local, placed.offset + placed.size, short(member.name)))
        if at != size:
            self._fail(f"has {size - at} bytes left over in its directory")
        for (_, end, before), (begin, _, after) in pairwise(sorted(extents)):
            if end > begin:
                self._fail(f"has {before} and {after}, which overlap")
        return members

    def _directory(self) -> tuple[int, int, int]:
        """(files, bytes, offset) of the central directory, from the record at the end."""
        size = self._file.size
        tail = min(size, _END.size + _COMMENT)
        raw = self._file.read(size - tail, tail)
        at = raw.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(raw):
            self._fail("has no zip directory at its end")
        _, disk, start_disk, here, count, length, start, comment = _END.unpack_from(raw, at)
        if at + _END.size + comment != len(raw):
            self._fail("does not end where its zip directory says")
        end = size - tail + at
        if 0xFFFF in (disk, start_disk, here, count) or 0xFFFFFFFF in (length, start):
            locator = self._read(end - _LOCATOR64.size, _LOCATOR64.size, "zip64 locator")
            magic, _, place, disks = _LOCATOR64.unpack(locator)
            if magic != b"PK\x06\x07" or disks > 1:
                self._fail("has no zip64 directory, although it says so")
            record = self._read(place, _END64.size, "zip64 directory")
            magic, _, _, _, disk, start_disk, here, count, length, start = _END64.unpack(record)
            if magic != b"PK\x06\x06":
                self._fail("has no zip64 directory, although it says so")
        if disk or start_disk or here != count:
            self._fail("is one of several parts of a zip archive")
        if length < count * _ENTRY.size:
            self._fail(f"says that {count} files are listed in {length} bytes")
        return count, length, start

    def _entry(self, raw: bytes, at: int) -> tuple[int, Member, int]:
        """(offset of the next entry, the file with its offset still unknown, offset of its local header)."""
        if at + _ENTRY.size > len(raw):
            self._fail("has a directory that ends too early")
        fields = _ENTRY.unpack_from(raw, at)
        magic, flags, method, stored, size = fields[0], fields[3], fields[4], fields[8], fields[9]
        name_size, extra_size, comment_size, disk, local = (*fields[10:13], fields[13], fields[16])
        body = at + _ENTRY.size
        after = body + name_size + extra_size + comment_size
        if magic != b"PK\x01\x02" or after > len(raw) or not 0 < name_size <= MAX_NAME:
            self._fail("has a directory entry that is none")
        name = self._name(raw[body : body + name_size])
        extra = raw[body + name_size : body + name_size + extra_size]
        size, stored, local, disk = self._zip64(name, extra, size, stored, local, disk)
        if method != 0 or flags & 0x2041:
            self._fail(f"has the file {short(name)} compressed or encrypted, which torch.save never does")
        if size != stored or disk:
            self._fail(f"has the file {short(name)} of {size} bytes stored in {stored}")
        return after, Member(name, 0, size), local

    def _name(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._fail(f"has a file whose name is not UTF-8: {short(raw)}")

    def _zip64(
        self, name: str, extra: bytes, size: int, stored: int, local: int, disk: int
    ) -> tuple[int, int, int, int]:
        """The values that did not fit their fields, in this order, each only if its field is full."""
        full = [size == 0xFFFFFFFF, stored == 0xFFFFFFFF, local == 0xFFFFFFFF]
        if not any(full) and disk != 0xFFFF:
            return size, stored, local, disk
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                widths = [8 * need for need in full] + [4 * (disk == 0xFFFF)]
                if length < sum(widths) or at + 4 + length > len(extra):
                    break
                values, place = [size, stored, local, disk], at + 4
                for index, width in enumerate(widths):
                    if width:
                        values[index] = int.from_bytes(extra[place : place + width], "little")
                        place += width
                return values[0], values[1], values[2], values[3]
            at += 4 + length
        self._fail(f"has the file {short(name)} without the zip64 field it needs")

    def _place(self, member: Member, local: int) -> Member:
        """Where the file's bytes begin: after its local header, which must be of the same file."""
        raw = self._read(local, _LOCAL.size, f"file {short(member.name)}")
        magic, _, flags, method, _, _, _, stored, size, name_size, extra_size = _LOCAL.unpack(raw)
        if magic != b"PK\x03\x04" or name_size > MAX_NAME:
            self._fail(f"has no file where {short(member.name)} should begin")
        name = self._read(local + _LOCAL.size, name_size, f"name of {short(member.name)}")
        later = flags & 8 and stored == 0 and size == 0  # sizes follow the data, as PyTorch's writer has it
        here = min(member.size, 0xFFFFFFFF)
        if name != member.name.encode() or method != 0 or not (later or {stored, size} <= {here, 0xFFFFFFFF}):
            self._fail(f"describes the file {short(member.name)} in two ways")
        offset = local + _LOCAL.size + name_size + extra_size
        if offset + member.size > self._file.size:
            self._fail(f"ends before byte {offset + member.size}, the end of its file {short(member.name)}")
        return Member(member.name, offset, member.size)
