"""ModelFiles -> a Llama on its device: tensor by tensor, whatever format and row order the file has.

Every weight is expanded to the compute type when it is loaded: the model runs from one type, and float32 is exactly
what the file says. The network is made on `meta` first, so that beside each finished parameter there are only some rows
of it in another form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from herder.core.errors import ModelFileError
from herder.formats import reference
from herder.formats.table import BF16, F16, F32
from herder.model.llama import Llama
from herder.weights.source import ModelFiles, TensorSource

Progress = Callable[[int, int], None]  # bytes read, bytes in all

SLICE_VALUES = 1 << 24  # expanded at a time

_FLOATS = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


def build(
    files: ModelFiles,
    *,
    dtype: torch.dtype,
    device: torch.device,
    context: int | None = None,
    progress: Progress | None = None,
) -> Llama:
    """The model of `files` with every parameter in `dtype` on `device`. context: see Llama.

    Raises ModelFileError when tensors and configuration disagree, or the files change meanwhile; torch's own errors
    when memory runs out.
    """
    with torch.device("meta"):
        model = Llama(files.config, context)
    total = sum(source.bytes for source in files.tensors)
    done = 0
    for source in files.load():
        place(model, source.name, load(source, model, dtype, device))
        source.release()
        done += source.bytes
        if progress is not None:
            progress(done, total)
    if files.config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            # attention_bias promises biases on q, k and v, and on o where the file has one.
            if not name.endswith(".o_proj.bias"):
                raise ModelFileError(f"{files.path}: tensor {name} is missing: download the file again")
            owner(model, name)[0].register_parameter("bias", None)
    return model.to(device)


def load(source: TensorSource, model: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor in the shape that the model has for it. Raises ModelFileError when it has none, or another."""
    module, leaf = owner(model, source.name)
    parameter = getattr(module, leaf, None)
    if not isinstance(parameter, Tensor) or not _fits(parameter, source):
        shape = "no such tensor" if parameter is None else f"shape {tuple(parameter.shape)}"
        raise ModelFileError(
            f"tensor {source.name} is {source.rows} x {source.cols}, but the configuration says {shape}: the file is "
            f"damaged, or was made for something else"
        )
    values = torch.empty(source.rows, source.cols, dtype=dtype, device=device)
    start = 0
    for piece in pieces(source):
        values[start : start + len(piece)].copy_(piece)
        start += len(piece)
    return values.view(parameter.shape)


def _fits(parameter: Tensor, source: TensorSource) -> bool:
    """Whether the shapes agree. A vector is one row, but of the image encoder, one column."""
    count = source.rows * source.cols
    return parameter.numel() == count and (parameter.ndim < 2 or parameter.shape[0] == source.rows)


def pieces(source: TensorSource) -> Iterator[Tensor]:
    """The rows in canonical order, some at a time: (some, cols) in the file's own type, or float32 where it is none."""
    stored = np.frombuffer(source.view(), np.uint8).reshape(source.rows, -1)
    row_map = None if source.row_map is None else np.frombuffer(source.row_map, np.uint32)
    step = max(1, SLICE_VALUES // source.cols)
    for start in range(0, source.rows, step):
        end = min(start + step, source.rows)
        rows = stored[start:end].copy() if row_map is None else stored[row_map[start:end]]
        dtype = _FLOATS.get(source.format)
        if dtype is not None:
            yield torch.from_numpy(rows).view(dtype)
        else:
            yield torch.from_numpy(reference.unpack(source.format, rows, end - start, source.cols))


def place(model: nn.Module, name: str, value: Tensor) -> None:
    module, leaf = owner(model, name)
    module.register_parameter(leaf, nn.Parameter(value))


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the parameter of this canonical name, and the parameter's name in it."""
    path, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(path), leaf
    except AttributeError:
        raise ModelFileError(f"tensor {name} has no place in this model: file and configuration disagree") from None
