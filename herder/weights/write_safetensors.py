"""Safetensors, written: one file or shards with their index, one tensor at a time. The layout is safetensors.py's."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

from herder.weights.output import Advance, Output, write_pieces

INDEX = "model.safetensors.index.json"
_ALIGNMENT = 8  # of the data, which other readers expect


def write_safetensors(file: BinaryIO, outputs: Sequence[Output], advance: Advance) -> None:
    """Writes a whole file; the metadata says `pt`, as every program of Hugging Face's asks."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in outputs:
        end = offset + output.bytes
        header[output.name] = {"dtype": output.format.name, "shape": output.shape, "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(raw)) + raw)
    for output in outputs:
        write_pieces(file, output, advance)


def shards(outputs: Sequence[Output], size: int) -> dict[str, list[Output]]:
    """File name -> its tensors, in order, each file at most `size` bytes unless one tensor is larger."""
    groups: list[list[Output]] = [[]]
    room = size
    for output in outputs:
        if groups[-1] and output.bytes > room:
            groups.append([])
            room = size
        groups[-1].append(output)
        room -= output.bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def index_of(files: dict[str, list[Output]]) -> dict[str, Any]:
    """The contents of INDEX, which shards need beside them."""
    total = sum(output.bytes for outputs in files.values() for output in outputs)
    weight_map = {output.name: file for file, outputs in files.items() for output in outputs}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
