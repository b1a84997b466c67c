"""The methods of quantization by the name that config.json gives them, and what a checkpoint's tensors become.

Every key of quantization_config is honoured, changes nothing about the weights, or is refused by name. What it says
about activations changes nothing: the runtime computes with them its own way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.formats import table
from herder.formats.table import Format
from herder.weights.fields import Fields, short
from herder.weights.quantized import awq, bitsandbytes, compressed_tensors, fp8, gptq
from herder.weights.quantized.made import Made, Matrix
from herder.weights.quantized.parts import Checkpoint, Part

# quant_method -> (reader, keys that may have any value)
METHODS: dict[str, tuple[Callable[[Fields, Checkpoint], Sequence[Matrix]], str]] = {
    "gptq": (gptq.read, gptq.HARMLESS),
    "awq": (awq.read, awq.HARMLESS),
    "compressed-tensors": (compressed_tensors.read, compressed_tensors.HARMLESS),
    "fp8": (fp8.read_fp8, fp8.FP8_HARMLESS),
    "fbgemm_fp8": (fp8.read_fbgemm, fp8.FBGEMM_HARMLESS),
    "bitsandbytes": (bitsandbytes.read, bitsandbytes.HARMLESS),
}

_DTYPES = {"float32": table.F32, "float16": table.F16, "bfloat16": table.BF16}

# Small matrices whose values decide much, and the vision tower, which is computed in floating point.
_ALWAYS_FLOAT = re.compile(r"(^|\.)(router|(block_sparse_moe|mlp)\.gate|vision_model|multi_modal_projector)\b")


class Quantized(NamedTuple):
    """made: the matrices, under the names of an unquantized checkpoint. taken: the stored tensors they are made from,
    and those that say nothing about weights."""

    made: list[Made]
    taken: frozenset[str]


def read_quantized(
    where: str, config: Mapping[str, Any], parts: Mapping[str, Part], *, dtype: str | None, biases: bool
) -> Quantized:
    """What the stored tensors of a quantized checkpoint become. Reads scales and zero points only.

    where: names config.json in errors. config: its quantization_config. parts: every stored tensor by name. dtype: the
    checkpoint's torch_dtype, to which a matrix is expanded that no block format holds exactly; None: BF16. biases:
    whether the model has biases.
    Raises ModelFileError for tensors that contradict the configuration or each other, UnsupportedModel for a method,
    layout or key that is not known here.
    """
    keys = Fields(where, {f"quantization_config.{key}": value for key, value in config.items()}, "quantization_config.")
    method = keys.text("quant_method", _unnamed(config))
    if method not in METHODS:
        raise UnsupportedModel(
            f"{where}: weights quantized with {short(method)} are not supported; supported are {', '.join(METHODS)}: "
            "use the unquantized model or a GGUF"
        )
    read, harmless = METHODS[method]
    checkpoint = Checkpoint(where, parts, biases)
    matrices = read(keys, checkpoint)
    for key in harmless.split():
        keys.get(key)
    if unknown := keys.unread():
        raise UnsupportedModel(
            f"{where}: quantization_config.{unknown[0]} = {short(keys.get(unknown[0]))} is not known here and may "
            "change the weights: remove the key if it does not, or use a newer version of herder"
        )
    if not matrices:
        raise ModelFileError(
            f"{where}: quantization_config names {method}, but no tensor is quantized: remove it there"
        )
    expanded = _dtype(where, dtype)
    made = []
    for matrix in matrices:
        if matrix.name in parts and matrix.name not in checkpoint.taken:
            raise ModelFileError(f"{parts[matrix.name].where} is there twice, quantized and not: get the file again")
        made.append(matrix.made(expanded, blocks=_ALWAYS_FLOAT.search(matrix.name) is None))
    return Quantized(made, frozenset(checkpoint.taken))


def _unnamed(config: Mapping[str, Any]) -> str:
    """bitsandbytes' first files do not name their method."""
    return "bitsandbytes" if config.get("load_in_8bit") or config.get("load_in_4bit") else ""


def _dtype(where: str, name: str | None) -> Format:
    found = _DTYPES.get((name or "bfloat16").removeprefix("torch."))
    if found is None:
        raise UnsupportedModel(f"{where}: dtype {short(name)} is not supported; supported are {', '.join(_DTYPES)}")
    return found
