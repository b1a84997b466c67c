"""A stored tensor of a Hugging Face directory -> TensorSources: names, shapes, stacked experts, row order."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from herder.core.config import Experts, ModelConfig
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.formats.table import BY_NAME, Format
from herder.weights.fields import short
from herder.weights.mapping import OwnedBytes
from herder.weights.names import BIASES, Place, Role, canonical_name, ignored, parse_name
from herder.weights.names_hf import renamed, stacked_experts
from herder.weights.rows import RowMaps, gathered_bias
from herder.weights.safetensors import SafeTensor, SafeTensors
from herder.weights.source import TensorSource, shape_of
from herder.weights.vision_tensors import PREFIXES, vision_shapes

if TYPE_CHECKING:
    from herder.weights.quantized.made import Made

_INTERLEAVED = ("llama4", "llama4_text")  # whose q and k rows transformers keeps in Meta's order


class HubTensors:
    """Reads the tensors of one model, one at a time."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._vision = vision_shapes(config)
        self._row_maps = RowMaps(config) if config.architecture in _INTERLEAVED else None

    def read(self, shard: SafeTensors, info: SafeTensor) -> Iterator[TensorSource]:
        """What a stored tensor is to the model: nothing, one tensor, or those of all experts of a layer.

        Raises ModelFileError for a wrong shape, UnsupportedModel for an unknown name or storage format.
        """
        name = renamed(info.name, self._config.architecture)
        if self._config.vision is not None and name.startswith(PREFIXES):
            yield self._vision_tensor(shard, info, name)
        elif (stack := stacked_experts(name)) is not None and self._config.experts is not None:
            yield from self._experts(shard, info, self._config.experts, *stack)
        elif (place := self._place(name)) is not None:
            yield self._tensor(shard, info, place)
        elif ignored(name) is None:
            raise UnsupportedModel(
                f"{shard.path}: tensor {short(info.name)} is not known here: is this a model of another kind?"
            )

    def made(self, where: str, matrix: Made) -> TensorSource:
        """A matrix that is made from quantized ones, under its name in an unquantized checkpoint. where names the
        checkpoint in errors. Raises as `read` does."""
        name = renamed(matrix.name, self._config.architecture)
        place = self._place(name)
        expected = self._vision.get(name) if place is None else shape_of(place.role, self._config)
        if expected is None:
            raise UnsupportedModel(f"{where}: tensor {short(matrix.name)} is not known here")
        if (matrix.rows, matrix.cols) != expected:
            raise ModelFileError(
                f"{where}: tensor {matrix.name} has shape {matrix.rows} x {matrix.cols}, but config.json asks for "
                f"{_text(expected)}: weights and configuration disagree"
            )
        place = place or Place(Role.VISION)
        return TensorSource(
            name, place.role, place.layer, matrix.format.id, matrix.rows, matrix.cols, 0, matrix.bytes,
            self._row_map(place), expert=place.expert, make=matrix.make,
        )  # fmt: skip

    def _place(self, name: str) -> Place | None:
        """Where a renamed tensor belongs. Only canonical names: GGUF's are none here."""
        place = parse_name(name)
        return place if place is not None and canonical_name(*place) == name else None

    def _tensor(self, shard: SafeTensors, info: SafeTensor, place: Place) -> TensorSource:
        fmt = _format(shard, info)
        rows, cols = shape_of(place.role, self._config)
        _check_shape(shard, info, (cols,) if rows == 1 and place.role is not Role.ROUTER else (rows, cols))
        source = TensorSource(
            canonical_name(*place), place.role, place.layer, fmt.id, rows, cols, shard.address(info), info.bytes,
            self._row_map(place), shard.file, info.offset, place.expert,
        )  # fmt: skip
        if place.role in BIASES and source.row_map is not None:
            owned: OwnedBytes = gathered_bias(shard.file, info.offset, fmt.block_bytes, source.row_map)
            return replace(source, address=owned.address(0), row_map=None, file=owned, offset=0)
        return source

    def _row_map(self, place: Place) -> array[int] | None:
        return None if self._row_maps is None or place.cross else self._row_maps.of(place.role)

    def _vision_tensor(self, shard: SafeTensors, info: SafeTensor, name: str) -> TensorSource:
        shape = self._vision.get(name)
        if shape is None:
            raise UnsupportedModel(
                f"{shard.path}: tensor {short(info.name)} belongs to no image encoder that config.json describes"
            )
        fmt = _format(shard, info)
        _check_shape(shard, info, shape)
        return TensorSource(
            name, Role.VISION, 0, fmt.id, shape[0], math.prod(shape[1:]), shard.address(info), info.bytes, None,
            shard.file, info.offset,
        )  # fmt: skip

    def _experts(
        self, shard: SafeTensors, info: SafeTensor, moe: Experts, layer: int, part: str
    ) -> Iterator[TensorSource]:
        """The experts of a layer in one tensor. Llama 4 keeps the transposes: gate_up_proj is (experts, dim,
        2 ffn_dim), the gate's columns first, and down_proj (experts, ffn_dim, dim). transformers has Mixtral's in
        memory as (experts, 2 ffn_dim, dim) and (experts, dim, ffn_dim)."""
        fmt, dim, turned = _format(shard, info), self._config.dim, self._row_maps is not None
        pieces: tuple[tuple[Role, int], ...]
        if part == "down_proj":
            pieces, stored = ((Role.EXPERT_DOWN, 0),), (moe.ffn_dim, dim)
        else:
            half = moe.ffn_dim if turned else moe.ffn_dim * dim
            pieces, stored = ((Role.EXPERT_GATE, 0), (Role.EXPERT_UP, half)), (dim, 2 * moe.ffn_dim)
        _check_shape(shard, info, (moe.count, *(stored if turned else stored[::-1])))
        size, each = fmt.block_bytes, math.prod(stored)
        for expert in range(moe.count):
            for role, first in pieces:
                rows, cols = shape_of(role, self._config)
                at = (expert * each + first) * size
                yield TensorSource(
                    canonical_name(role, layer, expert), role, layer, fmt.id, rows, cols, shard.address(info) + at,
                    rows * cols * size, None, shard.file, info.offset + at, expert, stored[1] if turned else 0,
                )  # fmt: skip


def _format(shard: SafeTensors, info: SafeTensor) -> Format:
    fmt = BY_NAME.get(info.dtype)
    if fmt is None:
        raise UnsupportedModel(
            f"{shard.path}: tensor {info.name} is stored as {info.dtype}; supported are F32, F16 and BF16"
        )
    return fmt


def _check_shape(shard: SafeTensors, info: SafeTensor, expected: tuple[int, ...]) -> None:
    if info.shape != expected:
        raise ModelFileError(
            f"{shard.path}: tensor {info.name} has shape {_text(info.shape)}, but config.json asks for "
            f"{_text(expected)}: weights and configuration disagree"
        )


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a scalar"
