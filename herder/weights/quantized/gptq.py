"""GPTQ: w = scale * (q - zero), the integers packed along the inputs.

Layout of AutoGPTQ's and GPTQModel's QuantLinear, for a linear layer of `in` inputs and `out` outputs, b bits a weight:
  qweight  int32 (in * b / 32, out)      packed down each column, see words.py
  qzeros   int32 (groups, out * b / 32)  packed along each row; checkpoint_format "gptq" stores zero - 1, "gptq_v2" zero
  scales   float (groups, out)
  g_idx    int32 (in)                    the group of each input; absent: input // group_size
With act-order (desc_act) a group's inputs lie scattered, which no block format can say: such matrices are expanded.
GPTQ's kernels multiply in float16 then, which is the product rounded once, as here when the dtype is float16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import REQUIRED, Fields, short
from herder.weights.quantized.made import Scaled, evenly, slabs, spread
from herder.weights.quantized.parts import FLOATS, Checkpoint, Floats, Integers
from herder.weights.quantized.words import unpack, words_for

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")

# How the integers were found, and what other programs do with them: the tensors say everything about the weights.
HARMLESS = (
    "sym static_groups true_sequential act_group_aware damp_percent damp_auto_increment mse dataset tokenizer "
    "batch_size pad_token_id model_seqlen block_name_to_quantize module_name_preceding_first_block "
    "modules_in_block_to_quantize modules_to_not_convert cache_block_outputs model_name_or_path model_file_base_name "
    "lm_head meta quantizer backend use_exllama disable_exllama exllama_config max_input_length use_cuda_fp16 "
    "rotation_meta hyb_act parallel_packing"
)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Of one module: group None is one group for all inputs."""

    bits: int
    group: int | None


def read(keys: Fields, checkpoint: Checkpoint) -> list[Scaled]:
    """Every module that has a `qweight`. Raises ModelFileError, UnsupportedModel."""
    whole = _settings(keys, None)
    layout = keys.text("checkpoint_format", keys.text("format", "gptq")).lower()
    if layout not in FORMATS:
        raise UnsupportedModel(
            f"{keys.where}: checkpoint_format {short(layout)} is not supported; supported are {', '.join(FORMATS)}"
        )
    keys.neutral("pack_dtype", ("int32",), "integers packed in other words")
    keys.neutral("is_marlin_format", (False,), "weights in the order of the Marlin kernel")
    keys.get("format")  # older files have it beside checkpoint_format
    rules = _rules(keys, whole)
    desc_act = keys.flag("desc_act", False)
    modules = checkpoint.modules(".qweight")
    for module in modules:
        checkpoint.drop_zero_bias(module)
    return [_linear(checkpoint, module, _of(module, rules, whole), layout == "gptq", desc_act) for module in modules]


def _settings(keys: Fields, default: _Settings | None) -> _Settings:
    """default: what a module has that does not say otherwise; without it, bits must be there."""
    bits = keys.integer("bits", REQUIRED if default is None else default.bits, high=32)
    if bits not in BITS:
        raise UnsupportedModel(f"{keys.where}: GPTQ of {bits} bits is not supported; supported are 2, 3, 4 and 8")
    group = 128 if default is None else default.group
    if keys.get("group_size") is not None:
        group = None if keys.get("group_size") == -1 else keys.integer("group_size")
    return _Settings(bits, group)


def _rules(keys: Fields, whole: _Settings) -> list[tuple[re.Pattern[str], _Settings | None]]:
    """GPTQModel's `dynamic`: settings by a regular expression of the module's name; None for one that is left alone."""
    dynamic = keys.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(value, dict) for value in dynamic.values()):
        raise keys.wrong("dynamic", dynamic, "expected an object of objects")
    rules = []
    for pattern, values in dynamic.items():
        try:
            compiled = re.compile(pattern.removeprefix("+:").removeprefix("-:"))
        except re.error as error:
            raise keys.wrong("dynamic", pattern, f"not a regular expression ({error})") from None
        fields = Fields(keys.where, values)
        rules.append((compiled, None if pattern.startswith("-:") else _settings(fields, whole)))
        for key in (*HARMLESS.split(), "desc_act"):
            fields.get(key)
        if unknown := fields.unread():
            raise UnsupportedModel(f"{keys.where}: dynamic sets {short(unknown[0])}, which is not known here")
    return rules


def _of(module: str, rules: list[tuple[re.Pattern[str], _Settings | None]], whole: _Settings) -> _Settings:
    return next((found for pattern, found in rules if pattern.match(module) and found is not None), whole)


def _linear(checkpoint: Checkpoint, module: str, settings: _Settings, minus_one: bool, desc_act: bool) -> Scaled:
    bits = settings.bits
    packed = checkpoint.take_matrix(module + ".qweight", ("I32",))
    rows = packed.shape[1]
    if packed.shape[0] * 32 % bits:
        raise ModelFileError(f"{packed.where} has {packed.shape[0]} rows, which {bits} bits a weight do not fill")
    cols = packed.shape[0] * 32 // bits
    group = settings.group or cols
    count = -(-cols // group)
    scales = checkpoint.take(module + ".scales", FLOATS, (count, rows))
    qzeros = checkpoint.take(module + ".qzeros", ("I32",), (count, words_for(rows, bits)))
    groups = evenly(cols, group)
    if module + ".g_idx" in checkpoint:
        groups = checkpoint.take_groups(module + ".g_idx", cols, count)
    elif desc_act:
        raise ModelFileError(f"{packed.where} has no g_idx beside it, but quantization_config.desc_act is true")

    def zeros(low: int, high: int) -> Integers:
        return unpack(qzeros.array(), bits, low, high).T.astype(np.int16) + np.int16(minus_one)

    def values(low: int, high: int) -> Integers:
        q = unpack(packed.array()[:, low:high].T, bits, 0, cols).astype(np.int16)
        q -= spread(zeros(low, high), groups)
        return q

    def scales_of(low: int, high: int) -> Floats:
        return scales.floats(scales.array()[:, low:high].T)

    ends = [(int(z.min()), int(z.max())) for z in (zeros(low, high) for low, high in slabs(rows, count))]
    limits = -max(high for _, high in ends), 2**bits - 1 - min(low for low, _ in ends)
    return Scaled(module + ".weight", packed.where, rows, cols, groups, values, scales_of, limits, packed.release)
