"""The MD5 sums beside Meta's files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from herder.core.errors import HerderError, ModelFileError, ModelNotFound, StorageError
from herder.weights.checklist import verify


def write(directory: Path, text: str) -> None:
    (directory / "checklist.chk").write_text(text)


def refused(directory: Path, kind: type[HerderError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        verify(directory)
    assert "\n" not in str(caught.value)


def test_files_are_compared_with_their_sums(tmp_path: Path) -> None:
    contents = {"consolidated.00.pth": b"x" * (3 << 20), "params.json": b"{}"}
    lines = []
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        lines.append(f"{hashlib.md5(data).hexdigest()}  {name}")
    write(tmp_path, "\n".join(lines) + "\n")
    seen: list[tuple[str, int, int | None]] = []
    assert verify(tmp_path, lambda *report: seen.append(report)) == list(contents)
    assert seen[-1] == ("Verifying", (3 << 20) + 2, (3 << 20) + 2)
    (tmp_path / "params.json").write_bytes(b"[]")
    refused(tmp_path, StorageError, r"params\.json has the MD5 sum d751.*, but checklist\.chk says 9991.*: download")
    (tmp_path / "params.json").unlink()
    refused(tmp_path, ModelNotFound, r"params\.json is missing, although checklist\.chk lists it")


def test_lists_that_are_none_are_named(tmp_path: Path) -> None:
    refused(tmp_path, ModelNotFound, r"checklist\.chk cannot be read")
    for text, message in (
        ("", "lists no files"), ("x" * (1 << 21), "lists no files"), ("abc  params.json", "is not an MD5 sum"),
        (f"{'0' * 32}  ../../etc/passwd", "is not an MD5 sum"), (f"{'0' * 32}  /etc/passwd", "is not an MD5 sum"),
    ):  # fmt: skip
        write(tmp_path, text)
        refused(tmp_path, ModelFileError, message)
