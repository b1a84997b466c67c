"""Which arithmetic the native core computes prompts with: int8 activations like everything else, or bfloat16.

Generated tokens wait for weights to be read, so they take int8 activations, whose results have the same bits on every
CPU. Prompts are bound by arithmetic: where the CPU multiplies bfloat16 tiles (AMX), those are faster, and round less.
"""

from __future__ import annotations

from typing import Literal, get_args

from herder.core.errors import UsageError
from herder.formats.table import BY_ID
from herder.runtime import abi
from herder.runtime.packing import wanted
from herder.weights.names import PER_LAYER, Role
from herder.weights.source import ModelFiles

PromptDtype = Literal["auto", "int8", "bfloat16"]


def check(prompt_dtype: str, *, float32: bool = False) -> None:
    """Raises UsageError for a value that is none, or that float32 leaves no choice of."""
    if prompt_dtype not in get_args(PromptDtype):
        known = ", ".join(map(repr, get_args(PromptDtype)))
        raise UsageError(f"prompt_dtype is {prompt_dtype!r}: must be one of {known}")
    if float32 and prompt_dtype != "auto":
        raise UsageError(f"prompt_dtype is {prompt_dtype!r}: float32 computes prompts in float32, leave it at 'auto'")


def choose(
    files: ModelFiles,
    prompt_dtype: PromptDtype,
    *,
    float32: bool = False,
    isa: str | None = None,
    library_path: str | None = None,
) -> Literal["int8", "bfloat16"] | None:
    """What prompts are computed with; None where it is what generated tokens are computed with: in float32, and in a
    model without quantized matrices (the head aside, which takes int8 in any case). isa: None for the CPU's best.

    Raises UsageError for what check() refuses.
    """
    check(prompt_dtype, float32=float32)
    if float32:
        return None
    layers = (tensor for tensor in files.tensors if tensor.role in PER_LAYER and wanted(tensor, files.config))
    if not any(BY_ID[tensor.format_id].quantized and tensor.role != Role.ROUTER for tensor in layers):
        return None
    if prompt_dtype != "auto":
        return prompt_dtype
    return "bfloat16" if (isa or abi.cpu_info(library_path)["isa"]) == "amx" else "int8"
