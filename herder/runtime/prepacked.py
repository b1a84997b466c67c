"""Packed weights kept on disk: what loading a model computes, written once by `herder pack`, mapped from then on.

A file lies in HERDER_HOME/packed and belongs to one model's files (their paths, sizes and modification times), one
compute type and one version of the core's layouts; with any of them changed it is not used. Nothing is written here
unless asked for, since it takes about as much disk as the model. It appears whole or not at all; what its header says
is checked at each load, the weights themselves are trusted as the model's own file is.

    "HERDERPK" | header bytes, u32 | CRC-32 of the header, u32 | header, JSON | tensors, each at a multiple of 4096
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herder.core import machine
from herder.core.errors import HerderError, ModelFileError
from herder.runtime import abi
from herder.weights.mapping import MappedFile
from herder.weights.source import ModelFiles, TensorSource
from herder.weights.storage import require_space, storing, whole

MAGIC = b"HERDERPK"
SPARE = 2 << 30  # bytes that must stay free on the disk
_ALIGN = 4096
_MOST_HEADER = 64 << 20
_SUFFIX = ".packed"


@dataclass(frozen=True, slots=True)
class Prepacked:
    """A mapped file of packed tensors. places: a tensor's key -> (offset, bytes)."""

    file: MappedFile
    places: dict[str, tuple[int, int]]

    def find(self, tensor: TensorSource, size: int) -> int:
        """Address of the tensor's packed bytes, 0 if it is not there. size: what it must take."""
        offset, length = self.places.get(_key(tensor), (0, 0))
        return self.file.address(offset) if length == size else 0


def _key(tensor: TensorSource) -> str:
    return f"{int(tensor.role)}.{tensor.layer}.{tensor.expert}"


def _directory() -> Path:
    return machine.home() / "packed"


def path_of(files: ModelFiles, float32: bool = False) -> Path:
    """Where the packed weights of a model lie, or would."""
    path = os.path.realpath(files.path)
    return _directory() / f"{Path(path).stem[:80]}-{zlib.crc32(f'{path} {float32}'.encode()):08x}{_SUFFIX}"


def _identity(files: ModelFiles, float32: bool) -> dict[str, Any]:
    stats = [(os.path.realpath(path), os.stat(path)) for path in files.paths]
    return {
        "layout": abi.library().hd_layout_version(),
        "float32": float32,
        "files": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats],
    }


def open_packed(files: ModelFiles, float32: bool = False) -> Prepacked | None:
    """The packed weights of a model, None where there are none; or, with a line in the log, none that fit: made from
    files that have changed since or by another version, or damaged."""
    path = path_of(files, float32)
    if not path.exists():
        return None
    try:
        file = MappedFile(path)
    except HerderError:
        _say_unused(path, files)
        return None
    try:
        header = _header(file)
        places = {key: (int(offset), int(size)) for key, (offset, size) in header["tensors"].items()}
        fits = (header["identity"] == _identity(files, float32) and file.size == header["bytes"]) and all(
            size > 0 and offset > 0 and offset % _ALIGN == 0 and offset + size <= file.size
            for offset, size in places.values()
        )
        if fits:
            return Prepacked(file, places)
    except (ModelFileError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        pass
    file.close()
    _say_unused(path, files)
    return None


def _say_unused(path: Path, files: ModelFiles) -> None:
    import logging  # here, as it takes milliseconds that every start would pay

    logging.getLogger(__name__).warning(
        "%s does not fit %s any more and is not used: `herder pack %s` makes it again", path, files.path, files.path
    )


def _header(file: MappedFile) -> dict[str, Any]:
    """Raises ModelFileError where it is not whole."""
    start = file.read(0, 16)
    size, crc = int.from_bytes(start[8:12], "little"), int.from_bytes(start[12:16], "little")
    text = file.read(16, size) if start[:8] == MAGIC and len(start) == 16 and size <= _MOST_HEADER else b""
    if len(text) != size or zlib.crc32(text) != crc or not text:
        raise ModelFileError(f"{file.path} is damaged: write it again with `herder pack`")
    header: dict[str, Any] = json.loads(text)
    return header


def write(
    files: ModelFiles,
    tensors: list[tuple[TensorSource, int]],
    *,
    float32: bool = False,
    threads: int = 0,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Path:
    """Packs the given tensors, matrices of the model, each with the bytes it will take, and stores them. Replaces what
    was there.

    Raises StorageError when the disk would be left with less than SPARE bytes, ModelFileError, or OutOfMemory.
    """
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for tensor, size in tensors:
        places[_key(tensor)] = (end, size)
        end += -(-size // _ALIGN) * _ALIGN
    # offsets depend on the header's length, and that on their digits: room for the longest
    first = -(-(len(_encode(files, float32, places, end)) + 32 * len(places) + 64) // _ALIGN) * _ALIGN
    places = {key: (first + offset, size) for key, (offset, size) in places.items()}
    path, total = path_of(files, float32), first + end
    what, way_out = f"{files.name or files.path.name}, packed,", "free some space, or run the model as it is"
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, total + SPARE, what, way_out)
    with storing(path.parent, total, what, way_out), whole(path) as out:
        out.write(_encode(files, float32, places, total))
        for tensor, size in tensors:
            offset = places[_key(tensor)][0]
            out.seek(offset)
            with _packed(tensor, size, float32, threads) as data:
                out.write(data)
            tensor.release()
            if progress is not None:
                progress(f"packing {path.stem}", offset + size, total)
        out.truncate(total)
        files.verify_unchanged()
    return path


def _encode(files: ModelFiles, float32: bool, places: dict[str, tuple[int, int]], total: int) -> bytes:
    header = {"identity": _identity(files, float32), "bytes": total, "tensors": places}
    text = json.dumps(header, separators=(",", ":")).encode()
    return MAGIC + len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little") + text


@contextlib.contextmanager
def _packed(tensor: TensorSource, size: int, float32: bool, threads: int) -> Iterator[mmap.mmap]:
    """The packed bytes of one tensor, in memory of their own: pages, so aligned."""
    memory = mmap.mmap(-1, size)
    try:
        made = tensor.make() if tensor.make is not None else None
        given = abi.Tensor(
            role=int(tensor.role),
            format=tensor.format_id,
            rows=tensor.rows,
            cols=tensor.cols,
            data=tensor.address if made is None else made.address(0),
            bytes=tensor.bytes,
            row_map=None if tensor.row_map is None else tensor.row_map.buffer_info()[0],
            turned=tensor.turned,
        )
        anchor = ctypes.c_char.from_buffer(memory)
        error = abi.Error()
        status = abi.library().hd_pack(
            ctypes.addressof(given), abi.DTYPE_FLOAT32 if float32 else abi.DTYPE_AUTO, threads,
            ctypes.addressof(anchor), size, ctypes.addressof(error),
        )  # fmt: skip
        del anchor  # or the memory could not be closed
        if status:
            abi.fail(status, error, ModelFileError)
        yield memory
    finally:
        memory.close()


def stored() -> list[tuple[Path, int, str]]:
    """(path, bytes, model file) of everything in HERDER_HOME/packed; a damaged file's model is empty."""
    found = []
    for path in sorted(_directory().glob(f"*{_SUFFIX}")):
        with contextlib.suppress(HerderError):
            file = MappedFile(path)
            try:
                model = str(_header(file)["identity"]["files"][0][0])
            except (ModelFileError, KeyError, TypeError, ValueError, IndexError):
                model = ""
            found.append((path, file.size, model))
            file.close()
    return found
