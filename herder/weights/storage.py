"""Writing large files so that nobody ever sees half of one, and what to say when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from herder.core import machine
from herder.core.errors import StorageError
from herder.core.sizes import bytes_text

Progress = Callable[[str, int, int | None], None]
"""Called often during a transfer: (what is being fetched, bytes so far, bytes in all or None while unknown)."""

CHUNK = 1 << 20
FULL = {errno.ENOSPC, errno.EDQUOT}


def require_space(directory: Path, needed: int, what: str, way_out: str) -> None:
    """StorageError unless `needed` bytes can be written below directory. way_out ends the message."""
    free = machine.free_disk(directory)
    if free < needed:
        raise StorageError(f"{what} needs {_two(needed, free)} free in {directory}: {way_out}")


@contextlib.contextmanager
def storing(directory: Path, needed: int, what: str, way_out: str) -> Iterator[None]:
    """Turns a disk that fills up, or that may not be written, while `what` is stored into a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(
                f"the disk filled up while storing {what}, which needs {_two(needed, machine.free_disk(directory))} "
                f"free in {directory}: {way_out}"
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise StorageError(
                f"{error.filename or directory} cannot be written, so {what} cannot be stored: {way_out}"
            ) from error
        raise


def _two(needed: int, free: int) -> str:
    return f"{bytes_text(needed)} and has {bytes_text(free)}"


@contextlib.contextmanager
def whole(target: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes target when the block ends, its bytes and its name on the disk by then. Where the
    block raises, target is left as it was and nothing else is left."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, target)
        sync_directory(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def copy_verified(
    source: BinaryIO, target: Path, size: int, sha256: str, what: str, advance: Callable[[int], None]
) -> None:
    """Copies exactly `size` bytes from source to target, hashing them on the way; target appears whole or not at all.

    advance is called with the number of bytes written so far. Raises StorageError when the source is shorter, longer
    or not what sha256 (hexadecimal) says; target is left as it was.
    """
    import hashlib

    digest = hashlib.sha256()
    written = 0
    with whole(target) as out:
        while chunk := source.read(min(CHUNK, size - written + 1)):
            written += len(chunk)
            if written > size:
                raise StorageError(
                    f"{what} is longer than the {size} bytes it should have: it is not the published file"
                )
            digest.update(chunk)
            out.write(chunk)
            advance(written)
        if written != size:
            raise StorageError(f"{what} ends after {written} of {size} bytes: the download is incomplete, try again")
        if digest.hexdigest() != sha256:
            raise StorageError(
                f"{what} has sha256 {digest.hexdigest()} and not {sha256}: not the published file; it was deleted"
            )


def sync_directory(directory: Path) -> None:
    """Makes a rename in directory survive a power cut, where the system lets a directory be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """sha256 of a file in hexadecimal, read in pieces."""
    import hashlib

    digest = hashlib.sha256()
    done = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if advance is not None:
                advance(done)
    return digest.hexdigest()
