"""Files that torch.save wrote (.pth, .pt): one file -> named tensors in a mapping. No torch, and no pickle is run.

Layout: a zip archive (archive.py) of `NAME/data.pkl`, a pickle of {name: tensor} (unpickler.py), and `NAME/data/KEY`,
the bytes of one storage each; several tensors may share one. torch before 1.6 wrote another format, which is refused:
all of Meta's files are zip archives.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.archive import Member, read_archive
from herder.weights.fields import short
from herder.weights.mapping import MappedFile
from herder.weights.safetensors import DTYPE_BITS
from herder.weights.unpickler import Opaque, TensorInfo, unpickle

MAX_PICKLE = 4 << 20  # bytes, some 16,000 tensors; the largest of Meta's are under 1 MiB
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """shape and strides count elements of dtype (safetensors' name of it). offset: of element 0, bytes from the file's
    start; any alignment. All elements lie inside the tensor's storage."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class TorchFile:
    """One file, its tensors in the order in which they were saved.

    ignored: names whose value is an in-memory file and not a tensor (Transformer Engine's `_extra_state`).
    Raises ModelNotFound, ModelFileError (damaged, lying, a pickle that asks for more than tensors), UnsupportedModel.
    """

    def __init__(self, path: Path) -> None:
        if sys.byteorder != "little":
            raise UnsupportedModel("this machine is big-endian, and model files are little-endian: use another machine")
        self.path = path
        self.file = MappedFile(path)
        try:
            self.tensors, self.ignored = self._parse()
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.path} {problem}: the file is damaged, download it again")

    def _parse(self) -> tuple[dict[str, TorchTensor], tuple[str, ...]]:
        head = self.file.read(0, len(_LEGACY))
        if head.startswith(_LEGACY[:14]):
            raise UnsupportedModel(
                f"{self.path} is in the format of torch before 1.6: load it there and save it with a newer torch"
            )
        members = read_archive(self.file)
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            self._fail(f"has {len(pickles)} files data.pkl, where torch.save writes one")
        root = pickles[0].removesuffix("data.pkl")
        order = members.get(root + "byteorder")
        if order is not None and self._bytes(order, 16) != b"little":
            raise UnsupportedModel(f"{self.path} holds big-endian numbers: save it on a little-endian machine")
        state = unpickle(self._bytes(members[pickles[0]], MAX_PICKLE), str(self.path))
        if type(state) is not dict:
            self._fail(f"holds a {type(state).__name__}, not a dict of tensors")
        tensors: dict[str, TorchTensor] = {}
        ignored: list[str] = []
        for name, value in state.items():
            if type(name) is not str or not name or len(name) > 512:
                self._fail(f"has a tensor named {short(name)}")
            if type(value) is TensorInfo:
                tensors[name] = self._tensor(name, value, members.get(f"{root}data/{value.storage.key}"))
            elif type(value) is Opaque:
                ignored.append(name)
            else:
                self._fail(f"has {short(name)} that is a {type(value).__name__}, not a tensor")
        return tensors, tuple(ignored)

    def _bytes(self, member: Member, limit: int) -> bytes:
        if member.size > limit:
            self._fail(f"has {member.size} bytes in {member.name} (at most {limit})")
        raw = self.file.read(member.offset, member.size)
        if len(raw) != member.size:
            self._fail("became shorter while it was read")
        return raw

    def _tensor(self, name: str, info: TensorInfo, member: Member | None) -> TorchTensor:
        storage = info.storage
        if member is None:
            self._fail(f"has tensor {short(name)} in storage {short(storage.key)}, which it does not hold")
        size = DTYPE_BITS[info.dtype] // 8
        if storage.count * (1 if storage.dtype is None else DTYPE_BITS[storage.dtype] // 8) != member.size:
            self._fail(f"says {storage.count} elements are in storage {short(storage.key)} of {member.size} bytes")
        if storage.dtype not in (None, info.dtype):
            self._fail(f"has tensor {short(name)} of {info.dtype} in a storage of {storage.dtype}")
        if 0 not in info.shape:
            last = info.offset + sum((n - 1) * stride for n, stride in zip(info.shape, info.strides, strict=True))
            if (last + 1) * size > member.size:
                self._fail(f"has tensor {short(name)}, which reaches behind the {member.size} bytes of its storage")
        return TorchTensor(name, info.dtype, info.shape, info.strides, member.offset + info.offset * size)
