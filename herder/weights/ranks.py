"""A checkpoint split over ranks: the same names in each file, a piece of each tensor in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from herder.core.errors import ModelFileError
from herder.weights.fields import short
from herder.weights.safetensors import SafeTensors
from herder.weights.torch_file import TorchFile
from herder.weights.windows import Window, window


class Ranks:
    """The pieces of each tensor, in the order of the ranks. Remembers which names were asked for.

    where: names the directory in errors. ranks: name -> window of each rank.
    """

    def __init__(self, where: str, ranks: Sequence[Mapping[str, Window]]) -> None:
        self.where = where
        self.count = len(ranks)
        self._ranks = ranks
        self._taken: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name in self._ranks[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks[0])

    def pieces(self, name: str) -> list[Window]:
        """One window a rank. Raises ModelFileError when a rank has none."""
        self._taken.add(name)
        missing = [rank for rank, tensors in enumerate(self._ranks) if name not in tensors]
        if missing:
            of = f" on rank {missing[0]} of {self.count}" if self.count > 1 else ""
            raise ModelFileError(f"{self.where}: tensor {short(name)} is missing{of}: download the files again")
        return [tensors[name] for tensors in self._ranks]

    def left_over(self) -> list[str]:
        """Names on any rank that nobody asked for."""
        return sorted({name for tensors in self._ranks for name in tensors} - self._taken)


def torch_windows(file: TorchFile) -> dict[str, Window]:
    """The tensors of one file of torch.save."""
    return {
        name: window(file.file, name, tensor.dtype, tensor.shape, tensor.offset, tensor.strides)
        for name, tensor in file.tensors.items()
    }


def safe_windows(files: Sequence[SafeTensors]) -> dict[str, Window]:
    """The tensors of safetensors files that together are one rank. Raises ModelFileError when two have one name."""
    windows: dict[str, Window] = {}
    for file in files:
        for tensor in file.tensors:
            if tensor.name in windows:
                raise ModelFileError(f"{file.path}: tensor {short(tensor.name)} is also in another file of the model")
            strides, step = [], 1
            for size in reversed(tensor.shape):
                strides.append(step)
                step *= size
            windows[tensor.name] = window(
                file.file, tensor.name, tensor.dtype, tensor.shape, tensor.offset, strides[::-1]
            )
    return windows
