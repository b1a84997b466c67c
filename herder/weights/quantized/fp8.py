"""Eight-bit floats: w = scale * v, v in E4M3. The methods `fp8` (blocks, tensors) and `fbgemm_fp8` (rows).

fp8: weight float8_e4m3fn (out, in) with weight_scale_inv, one scale a block of weight_block_size (DeepSeek, 128 x 128),
the last blocks perhaps smaller; or one scale a tensor, called weight_scale_inv or weight_scale (AutoFP8, Mistral).
fbgemm_fp8: weight_scale (out, 1); and the experts of Llama 4 in one tensor, transposed: gate_up_proj (experts, dim, 2
ffn), the gates first, with gate_up_proj_scale (experts, 1, 2 ffn), and down_proj (experts, ffn, dim) with
down_proj_scale (experts, dim, 1), also found as (experts, 1, dim).
Sources: transformers' integrations/finegrained_fp8.py (whose Fp8Dequantize multiplies in float32 and rounds once, as is
done here) and integrations/fbgemm_fp8.py, whose kernels apply the scales to float32 sums and never round a weight.
No block format has these numbers, so all are expanded.
"""

from __future__ import annotations

import numpy as np

from herder.core.errors import UnsupportedModel
from herder.weights.fields import Fields, short
from herder.weights.quantized.made import Scaled, evenly
from herder.weights.quantized.parts import FLOATS, Array, Checkpoint, Floats, Part

FP8_HARMLESS = "modules_to_not_convert modules_to_convert ignored_layers ignore dequantize"
FBGEMM_HARMLESS = "activation_scale_ub modules_to_not_convert"

_SCALES = (*FLOATS, "F8_E8M0")


def read_fp8(keys: Fields, checkpoint: Checkpoint) -> list[Scaled]:
    """Every module with a `weight_scale_inv` or `weight_scale`. Raises ModelFileError, UnsupportedModel."""
    keys.neutral("activation_scheme", ("dynamic", "static"), "activations of another scheme")
    keys.neutral("fmt", ("e4m3",), "eight-bit floats of another kind")
    keys.neutral("scale_fmt", ("float", "ue8m0"), "scales of another kind")
    keys.neutral("expert_dtype", ("fp8",), "experts of another kind")
    block = keys.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    ):
        raise keys.wrong("weight_block_size", block, "expected [rows, columns] or null")
    found = []
    for suffix in (".weight_scale_inv", ".weight_scale"):
        for module in checkpoint.modules(suffix):
            weight = checkpoint.take_matrix(module + ".weight", ("F8_E4M3",))
            rows, cols = weight.shape
            height, width = block or (rows, cols)
            grid = -(-rows // height), -(-cols // width)
            shapes: tuple[tuple[int, ...], ...] = (grid,)
            if block is None:
                shapes += ((1,), (), (rows, 1))
            scale = checkpoint.take(module + suffix, _SCALES, *shapes)
            if scale.shape == (rows, 1):
                height = 1
            found.append(_matrix(module + ".weight", weight, scale, height, width))
    for suffix in (".activation_scale", ".input_scale", ".k_scale", ".v_scale"):
        checkpoint.drop(*(module + suffix for module in checkpoint.modules(suffix)))
    return found


def read_fbgemm(keys: Fields, checkpoint: Checkpoint) -> list[Scaled]:
    """Every module with a `weight_scale`, and Llama 4's experts. Raises ModelFileError, UnsupportedModel."""
    found = []
    for module in checkpoint.modules(".weight_scale"):
        weight = checkpoint.take_matrix(module + ".weight", ("F8_E4M3",))
        rows, cols = weight.shape
        scale = checkpoint.take(module + ".weight_scale", FLOATS, (rows, 1), (rows,))
        found.append(_matrix(module + ".weight", weight, scale, 1, cols))
    for module in checkpoint.modules(".gate_up_proj_scale"):
        found += _experts(checkpoint, module, "gate_up_proj", ("gate_proj", "up_proj"))
    for module in checkpoint.modules(".down_proj_scale"):
        found += _experts(checkpoint, module, "down_proj", ("down_proj",))
    checkpoint.drop(*(module + ".input_scale_ub" for module in checkpoint.modules(".input_scale_ub")))
    return found


def _matrix(name: str, weight: Part, scale: Part, height: int, width: int) -> Scaled:
    """Scales by blocks of height x width."""
    rows, cols = weight.shape
    groups = evenly(cols, width)

    def scales(low: int, high: int) -> Floats:
        grid = scale.floats(scale.array()).reshape(-1, int(groups[-1]) + 1)
        picked: Floats = grid[np.arange(low, high) // height]
        return picked

    def values(low: int, high: int) -> Array:
        return weight.floats(weight.array()[low:high])

    return Scaled(name, weight.where, rows, cols, groups, values, scales, None, weight.release)


def _experts(checkpoint: Checkpoint, module: str, stored: str, names: tuple[str, ...]) -> list[Scaled]:
    """One matrix per expert and name; each stored expert is the transpose of the named matrices, one under another."""
    weight = checkpoint.take(f"{module}.{stored}", ("F8_E4M3",))
    if len(weight.shape) != 3 or min(weight.shape) < 1 or weight.shape[2] % len(names):
        raise UnsupportedModel(f"{weight.where} has shape {short(weight.shape)}: expected (experts, inputs, outputs)")
    count, cols, outputs = weight.shape
    scale = checkpoint.take(f"{module}.{stored}_scale", FLOATS, (count, 1, outputs), (count, outputs, 1))
    rows = outputs // len(names)
    groups = evenly(cols, cols)

    def matrix(expert: int, name: str, first: int) -> Scaled:
        def values(low: int, high: int) -> Array:
            return weight.floats(weight.array()[expert, :, first + low : first + high].T)

        def scales(low: int, high: int) -> Floats:
            return scale.floats(scale.array()[expert].reshape(-1, 1)[first + low : first + high])

        return Scaled(
            f"{module}.{expert}.{name}.weight", weight.where, rows, cols, groups, values, scales, None, weight.release
        )

    return [matrix(expert, name, i * rows) for expert in range(count) for i, name in enumerate(names)]
