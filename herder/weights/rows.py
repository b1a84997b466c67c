"""q and k rows of files that keep the interleaved RoPE order: their row maps, and biases gathered by them."""

from __future__ import annotations

from array import array

from herder.core.config import ModelConfig
from herder.weights.mapping import MappedFile, OwnedBytes
from herder.weights.names import Role, interleaved_rows


class RowMaps:
    """The row maps of q and k, one for all layers. Made when a tensor of the right shape asks for them: before that, a
    lying head count could ask for an endless one. Cross-attention has no RoPE, and so no row maps."""

    def __init__(self, config: ModelConfig) -> None:
        self._heads = {Role.WQ: config.heads, Role.BQ: config.heads, Role.WK: config.kv_heads, Role.BK: config.kv_heads}
        self._head_dim = config.head_dim
        self._maps: dict[int, array[int]] = {}

    def of(self, role: Role) -> array[int] | None:
        heads = self._heads.get(role)
        if heads is None:
            return None
        if heads not in self._maps:
            self._maps[heads] = interleaved_rows(heads, self._head_dim)
        return self._maps[heads]


def gathered_bias(file: MappedFile, offset: int, size: int, order: array[int]) -> OwnedBytes:
    """A q or k bias in canonical order, `size` bytes an element. It is one row, so a row map cannot express it; it is
    small, so it is copied. Raises ModelFileError when the file has changed."""
    data = file.read(offset, size * len(order))
    if len(data) != size * len(order):
        file.verify_unchanged()
    return OwnedBytes(b"".join([data[i * size : (i + 1) * size] for i in order]))
