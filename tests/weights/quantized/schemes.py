"""Float matrices quantized into each layout, with the numbers that the layout's definition says these are. No torch.

A scheme is a quantization_config and a function: module name and weights (out, in) in float32 -> the tensors stored in
their place, by full name, and the weights that they stand for. What no block format of ours holds is rounded to
bfloat16, the dtype of these checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herder.weights.quantized.parts import decode
from tests.weights.quantized.checkpoint import Bits, bf16, bf16_bits, bf16_values, pack_stream
from tests.weights.quantized.test_awq import pack as pack_awq
from tests.weights.quantized.test_bitsandbytes import NF4

Floats = NDArray[np.float32]
Stored = tuple[dict[str, Any], Floats]
_E4M3 = decode("", "F8_E4M3", np.arange(127, dtype=np.uint8))  # the positive numbers, in order


class Scheme(NamedTuple):
    config: dict[str, Any]
    quantize: Callable[[str, Floats], Stored]


def _integers(w: Floats, group: int, low: int, high: int, zeros: bool) -> tuple[NDArray[Any], Floats, NDArray[Any]]:
    """q (out, in), scales of float16 (out, groups) and zero points (out, groups)."""
    grouped = w.reshape(len(w), -1, group)
    least, greatest = np.minimum(grouped.min(2), 0), np.maximum(grouped.max(2), 0)
    width = (greatest - least) / (high - low) if zeros else np.abs(grouped).max(2) / ((high - low) // 2)
    scales = (width + 1e-4).astype(np.float16).astype(np.float32)
    points = low - np.round(least / scales) if zeros else np.full_like(scales, (low + high + 1) // 2)
    q = np.clip(np.round(grouped / scales[..., None]) + points[..., None], low, high)
    return q.reshape(w.shape).astype(np.int64), scales, points.astype(np.int64)


def _of(q: NDArray[Any], scales: Floats, points: NDArray[Any], groups: NDArray[Any]) -> Floats:
    return (scales[:, groups] * (q - points[:, groups])).astype(np.float32)


def _evenly(w: Floats, group: int) -> NDArray[Any]:
    return np.arange(w.shape[1]) // group


def gptq(module: str, w: Floats) -> Stored:
    q, scales, points = _integers(w, 16 if w.shape[1] % 32 else 32, 0, 15, zeros=False)
    groups = _evenly(w, w.shape[1] // scales.shape[1])
    exact = _of(q, scales, points, groups)
    return _gptq(module, q, scales, points - 1, groups), exact if w.shape[1] % 32 == 0 else bf16_values(exact)


def gptq_ordered(module: str, w: Floats) -> Stored:
    q, scales, points = _integers(w, 16, 0, 15, zeros=True)
    groups = np.random.default_rng(len(module)).permutation(_evenly(w, 16))
    return _gptq(module, q, scales, points, groups), bf16_values(_of(q, scales, points, groups))


def _gptq(module: str, q: NDArray[Any], scales: Floats, points: NDArray[Any], groups: NDArray[Any]) -> dict[str, Any]:
    return {
        f"{module}.qweight": pack_stream(q, 4).T.copy(), f"{module}.qzeros": pack_stream(points.T, 4),
        f"{module}.scales": scales.T.astype(np.float16), f"{module}.g_idx": groups.astype(np.int32),
    }  # fmt: skip


def awq(module: str, w: Floats) -> Stored:
    q, scales, points = _integers(w, 32, 0, 15, zeros=True)
    tensors = {"qweight": pack_awq(q.T), "qzeros": pack_awq(points.T), "scales": scales.T.astype(np.float16)}
    return {f"{module}.{name}": value for name, value in tensors.items()}, _of(q, scales, points, _evenly(w, 32))


def packed(module: str, w: Floats) -> Stored:
    """compressed-tensors, with zero points."""
    q, scales, points = _integers(w, 16, -8, 7, zeros=True)
    tensors = {
        "weight_packed": pack_stream(q + 8, 4), "weight_zero_point": pack_stream(points.T + 8, 4).T.copy(),
        "weight_scale": scales.astype(np.float16), "weight_shape": np.array(w.shape),
    }  # fmt: skip
    wanted = bf16_values(_of(q, scales, points, _evenly(w, 16)))
    return {f"{module}.{name}": value for name, value in tensors.items()}, wanted


def int8(module: str, w: Floats) -> Stored:
    scales = bf16_values(np.abs(w).max(1, keepdims=True) / 127)
    q = np.clip(np.round(w / scales), -128, 127).astype(np.int8)
    exact = scales * q
    wanted = exact if w.shape[1] % 32 == 0 else bf16_values(exact)
    return {f"{module}.weight": q, f"{module}.weight_scale": bf16(scales)}, wanted


def _float8(w: Floats, scales: Floats) -> tuple[Bits, Floats]:
    """The nearest numbers of E4M3, and those times the scales (of w's shape)."""
    target = np.abs(w / scales)
    codes = np.searchsorted((_E4M3[1:] + _E4M3[:-1]) / 2, target).astype(np.uint8)
    codes |= (w < 0).astype(np.uint8) << 7
    return Bits("F8_E4M3", codes), bf16_values(decode("", "F8_E4M3", codes) * scales)


def rows8(module: str, w: Floats) -> Stored:
    """compressed-tensors' float8 per channel, and fbgemm's rows."""
    scales = (np.abs(w).max(1, keepdims=True) / 448).astype(np.float32)
    codes, wanted = _float8(w, np.broadcast_to(scales, w.shape))
    return {f"{module}.weight": codes, f"{module}.weight_scale": scales}, wanted


def fbgemm(module: str, w: Floats) -> Stored:
    """rows8; and Llama 4's experts, (experts, in, out): a scale for each output of each expert."""
    if w.ndim == 2:
        return rows8(module, w)
    scales = (np.abs(w).max(1, keepdims=True) / 448).astype(np.float32)
    codes, wanted = _float8(w, np.broadcast_to(scales, w.shape))
    stored = scales if module.endswith("gate_up_proj") else scales.transpose(0, 2, 1)
    return {module: codes, module + "_scale": stored}, wanted


def blocks8(module: str, w: Floats) -> Stored:
    grid = np.random.default_rng(len(module)).uniform(0.002, 0.004, (-(-len(w) // 32), -(-w.shape[1] // 16)))
    scales = grid.astype(np.float32).repeat(32, 0).repeat(16, 1)[: len(w), : w.shape[1]]
    codes, wanted = _float8(w, scales)
    return {f"{module}.weight": codes, f"{module}.weight_scale_inv": grid.astype(np.float32)}, wanted


def nf4(module: str, w: Floats) -> Stored:
    table, flat = np.array(NF4, np.float32), w.reshape(-1, 64)
    absmax = np.abs(flat).max(1).astype(np.float32)
    indices = np.abs(flat[..., None] / absmax[:, None, None] - table).argmin(-1).reshape(-1).astype(np.uint8)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(w.shape)}
    name = f"{module}.weight"
    tensors = {
        name: (indices[::2] << 4 | indices[1::2]).reshape(-1, 1), f"{name}.absmax": absmax, f"{name}.quant_map": table,
        f"{name}.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }  # fmt: skip
    return tensors, bf16_values((table[indices].reshape(-1, 64) * absmax[:, None]).reshape(w.shape))


def llm_int8(module: str, w: Floats) -> Stored:
    scb = np.abs(w).max(1).astype(np.float32)
    q = np.round(w * (127 / scb[:, None])).astype(np.int8)
    wanted = bf16_values(q.astype(np.float32) * scb[:, None] * np.float32(1 / 127))
    return {f"{module}.weight": q, f"{module}.SCB": scb, f"{module}.weight_format": np.array(0, np.uint8)}, wanted


def _compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"a": group},
        "ignore": ["lm_head"],
    }


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
SCHEMES = {
    "gptq": Scheme(_GPTQ, gptq),
    "gptq in order of activation": Scheme(
        {**_GPTQ, "group_size": 16, "desc_act": True, "sym": False, "checkpoint_format": "gptq_v2"}, gptq_ordered
    ),
    "awq": Scheme({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq),
    "compressed-tensors packed": Scheme(
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=16, symmetric=False), packed
    ),
    "compressed-tensors int8": Scheme(
        _compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True), int8
    ),
    "compressed-tensors float8": Scheme(
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True), rows8
    ),
    "fp8": Scheme({"quant_method": "fp8", "weight_block_size": [32, 16], "activation_scheme": "dynamic"}, blocks8),
    "fbgemm_fp8": Scheme({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fbgemm),
    "bitsandbytes nf4": Scheme({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4),
    "bitsandbytes int8": Scheme({"quant_method": "bitsandbytes", "load_in_8bit": True}, llm_int8),
}  # fmt: skip


def plain(values: Floats) -> Bits:
    """A tensor that stays as it is, in these checkpoints' dtype."""
    return Bits("BF16", bf16_bits(values).reshape(values.shape))
