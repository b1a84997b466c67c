"""A read-only mapping of a file, with addresses to hand to native code and a guard against the file changing.

Why a guard: reading a mapped page behind the end of a file that was truncated after mapping raises SIGBUS, which kills
the process. What can be detected is a change of size or modification time, by asking the kernel before and after the
pages are read; a truncation between the question and the read cannot be. Replacing the file by rename is harmless: the
mapping keeps the old file alive.
"""

from __future__ import annotations

import copy
import mmap
import os
import stat
from pathlib import Path
from typing import Any

from herder.core.errors import ModelFileError, ModelNotFound


class MappedFile:
    """An open file: `read` for headers (a short file gives a short read), `view` and `address` for tensor data.

    Raises ModelNotFound when the path does not exist, ModelFileError when it is not a readable regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._base = 0
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # asked before opening: opening a pipe would wait for a writer
                raise ModelFileError(f"{path} is not a regular file: give the path of a model file")
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close())
        except FileNotFoundError:
            raise ModelNotFound(f"{path} does not exist: give the path of a model file") from None
        except OSError as error:
            raise ModelFileError(f"{path} cannot be opened ({error.strerror}): check its permissions") from None
        except ModelFileError:
            raise
        except ValueError as error:  # a NUL character in the path
            raise ModelFileError(f"{str(path)!r} is not a path ({error}): give the path of a model file") from None
        self._stat = os.fstat(self._file.fileno())
        self.size = self._stat.st_size

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`, by an ordinary read: never SIGBUS, shorter at the end of the file."""
        self._file.seek(offset)
        parts = []
        while count > 0:
            part = self._file.read(count)
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def map(self) -> mmap.mmap:
        """Maps the file, read-only and shared with every other process that maps it. Costs no memory until touched."""
        if self._map is None:
            if self.size == 0:
                raise ModelFileError(f"{self.path} is empty: download it again")
            try:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelFileError(f"{self.path} cannot be mapped ({error}): check that it is a local file") from None
            self._base = _address_of(self._map)
            if len(self._map) != self.size:
                raise self._changed()
        return self._map

    def address(self, offset: int) -> int:
        """Address of the byte at `offset`; valid until close()."""
        self.map()
        return self._base + offset

    def view(self, offset: int, count: int) -> memoryview:
        """The bytes [offset, offset + count) without a copy."""
        return memoryview(self.map())[offset : offset + count]

    def release(self, offset: int, count: int) -> None:
        """Lets the kernel drop the whole pages of this range from our memory; they are read again if touched."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + count) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def share(self) -> MappedFile:
        """The same open file and mapping for another owner: addresses stay valid until both are closed."""
        self.map()
        other = copy.copy(self)
        other._file = open(os.dup(self._file.fileno()), "rb", buffering=0)  # noqa: SIM115 (closed by close())
        return other

    def verify_unchanged(self) -> None:
        """Raises ModelFileError when size or modification time differ from when the file was opened."""
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise self._changed()

    def close(self) -> None:
        """Unmaps and closes; addresses handed out become invalid, unless the file is shared. A view that is still alive
        keeps the mapping (and so itself) valid until it is released. Closing twice is harmless."""
        self._map = None  # unmapped with the last view and the last owner
        self._file.close()

    def _changed(self) -> ModelFileError:
        return ModelFileError(f"{self.path} changed while it was being read: wait until it is complete and try again")


def _address_of(buffer: mmap.mmap) -> int:
    """Address of a read-only buffer, through the buffer protocol: ctypes' from_buffer insists on a writable one, and a
    writable private mapping of a file larger than memory is refused by Linux's overcommit check."""
    import ctypes

    class PyBuffer(ctypes.Structure):  # struct Py_buffer of CPython's stable ABI (3.11)
        _fields_ = (
            ("buf", ctypes.c_void_p),
            ("obj", ctypes.py_object),
            ("len", ctypes.c_ssize_t),
            ("itemsize", ctypes.c_ssize_t),
            ("readonly", ctypes.c_int),
            ("ndim", ctypes.c_int),
            ("format", ctypes.c_char_p),
            ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p),
            ("suboffsets", ctypes.c_void_p),
            ("internal", ctypes.c_void_p),
        )

    api: Any = ctypes.pythonapi
    view = PyBuffer()
    api.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    address = view.buf
    api.PyBuffer_Release(ctypes.byref(view))
    assert address is not None
    return int(address)


class OwnedBytes:
    """Bytes that had to be rearranged, with the interface of MappedFile where a tensor needs it. Takes a bytearray over
    without a copy."""

    def __init__(self, data: bytes | bytearray) -> None:
        import ctypes

        self._data = data if isinstance(data, bytearray) else bytearray(data)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._data))

    def address(self, offset: int) -> int:
        return self._base + offset

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._data[offset : offset + count])

    def view(self, offset: int, count: int) -> memoryview:
        return memoryview(self._data)[offset : offset + count]

    def release(self, offset: int, count: int) -> None:
        """Nothing to drop: these bytes exist nowhere else."""

    def verify_unchanged(self) -> None:
        """Always holds."""
