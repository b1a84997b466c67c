"""Files that torch.load reads (with weights_only, too), written without torch: a zip archive around a small pickle.

The layout is torch_file.py's: `NAME/data.pkl`, a pickle of {name: tensor}, and `NAME/data/KEY`, the bytes of each. The
pickle is written opcode by opcode (protocol 2), and calls nothing but torch._utils._rebuild_tensor_v2.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO, cast

from herder.formats import table
from herder.formats.table import Format
from herder.weights.output import Advance, Output, write_pieces

_STORAGES = {table.F32: "FloatStorage", table.F16: "HalfStorage", table.BF16: "BFloat16Storage"}
_ROOT = "consolidated"
_ZIP64 = 1 << 31  # bytes from which a member's size needs eight


def write_torch(
    file: BinaryIO, outputs: Sequence[Output], advance: Advance, shared: Mapping[str, str] | None = None
) -> None:
    """Writes a whole file. Formats: F32, F16 and BF16. shared: further names -> the tensor whose storage they share."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}/data.pkl"), _pickle(outputs, shared or {}))
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}/byteorder"), b"little")
        for key, output in enumerate(outputs):
            member = zipfile.ZipInfo(f"{_ROOT}/data/{key}")
            with archive.open(member, "w", force_zip64=output.bytes >= _ZIP64) as target:
                write_pieces(cast(BinaryIO, target), output, advance)
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}/version"), b"3\n")


def _pickle(outputs: Sequence[Output], shared: Mapping[str, str]) -> bytes:
    """PROTO 2, EMPTY_DICT, MARK, name and tensor of each, SETITEMS, STOP."""
    tensors = {output.name: _tensor(str(key), output.format, output.shape) for key, output in enumerate(outputs)}
    tensors |= {name: tensors[other] for name, other in shared.items()}
    return b"\x80\x02}(" + b"".join(_text(name) + tensor for name, tensor in tensors.items()) + b"u."


def _tensor(key: str, fmt: Format, shape: tuple[int, ...]) -> bytes:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)."""
    strides, count = [], 1
    for size in reversed(shape):
        strides.append(count)
        count *= size
    storage = (
        b"(" + _text("storage") + _global("torch", _STORAGES[fmt]) + _text(key) + _text("cpu") + _int(count) + b"tQ"
    )
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = storage + _int(0) + _tuple(shape) + _tuple(tuple(reversed(strides))) + b"\x89" + hooks
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


def _int(value: int) -> bytes:
    """BININT, or LONG1 for what does not fit its four signed bytes."""
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _global(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()
