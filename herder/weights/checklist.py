"""checklist.chk: the MD5 sums that Meta's download leaves beside its files, compared with the files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from herder.core.errors import ModelFileError, ModelNotFound, StorageError
from herder.weights.fields import short

NAME = "checklist.chk"
MAX_BYTES = 1 << 20
_LINE = re.compile(r"([0-9a-fA-F]{32})[ \t]+\*?(?:\./)?([A-Za-z0-9][A-Za-z0-9._-]{0,200})")
_STEP = 1 << 20
Progress = Callable[[str, int, int | None], None]  # what is being done, how much of it, of how much (bytes)


def read_checklist(directory: Path) -> dict[str, str]:
    """File name -> MD5 sum in hexadecimal. Raises ModelNotFound without such a file, ModelFileError for damage."""
    path = directory / NAME
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read ({error.strerror}): there is nothing to compare with") from None
    text = raw.decode("utf-8", "replace") if len(raw) <= MAX_BYTES else ""
    sums: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ModelFileError(f"{path}: {short(line)} is not an MD5 sum and a file's name: download it again")
        sums[match[2]] = match[1].lower()
    if not sums:
        raise ModelFileError(f"{path} lists no files: download it again")
    return sums


def verify(directory: Path, progress: Progress | None = None) -> list[str]:
    """The names of the files of which each has the sum that the list says. Reads all of them.

    Raises ModelNotFound, ModelFileError, or StorageError naming the first file that is not what it should be.
    """
    sums = read_checklist(directory)
    for name in sums:
        if not (directory / name).is_file():
            raise ModelNotFound(f"{directory / name} is missing, although {NAME} lists it: download it too")
    total = sum((directory / name).stat().st_size for name in sums)
    done = 0
    for name, wanted in sums.items():
        # MD5 is what the list has; it guards against accidents, not against an attacker.
        digest = hashlib.md5(usedforsecurity=False)
        with open(directory / name, "rb") as file:
            while part := file.read(_STEP):
                digest.update(part)
                done += len(part)
                if progress is not None:
                    progress("Verifying", done, total)
        if digest.hexdigest() != wanted:
            raise StorageError(
                f"{directory / name} has the MD5 sum {digest.hexdigest()}, but {NAME} says {wanted}: download it again"
            )
    return list(sums)
