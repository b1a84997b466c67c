"""Eight-bit floats against torch's and transformers' own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.errors import ModelFileError
from herder.weights.quantized.parts import decode
from tests.weights.quantized.checkpoint import Bits, bf16_values, read

OUT, IN = 40, 96
MODULE = "model.layers.0.self_attn.o_proj"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32], "fmt": "e4m3"}
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}


def e4m3(seed: int, *shape: int) -> Any:
    """Every number of E4M3 but NaN."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 127, shape) | rng.integers(0, 2, shape) << 7
    return Bits("F8_E4M3", codes.astype(np.uint8))


def scalar_e4m3(code: int) -> float:
    """One sign bit, four of the exponent (bias 7), three of the fraction."""
    sign, exponent, fraction = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


def test_every_number_of_eight_bits() -> None:
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    np.testing.assert_array_equal(decode("x", "F8_E4M3", codes), [scalar_e4m3(int(code)) for code in codes])
    powers = decode("x", "F8_E8M0", np.arange(255, dtype=np.uint8))
    np.testing.assert_array_equal(powers, [2.0 ** (code - 127) for code in range(255)])
    for dtype, nan in (("F8_E4M3", 127), ("F8_E4M3", 255), ("F8_E8M0", 255)):
        with pytest.raises(ModelFileError, match="x holds NaN"):
            decode("x", dtype, np.array([nan], np.uint8))


@pytest.mark.oracle
def test_every_number_of_eight_bits_is_torchs() -> None:
    import torch

    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.view(torch.float8_e4m3fn).float()
    kept = ~numbers.isnan()
    np.testing.assert_array_equal(decode("x", "F8_E4M3", codes[kept].numpy()), numbers[kept].numpy())
    powers = codes[:255].view(torch.float8_e8m0fnu).float().numpy()
    np.testing.assert_array_equal(decode("x", "F8_E8M0", codes[:255].numpy()), powers)


@pytest.mark.oracle
@pytest.mark.parametrize("scales", ["float32", "bfloat16", "e8m0", "one"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_blocks_are_what_transformers_makes_of_them(tmp_path: Path, scales: str, dtype: str) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    rows, cols = 48, 96  # whole blocks: transformers' function knows no others
    weight, rng = e4m3(0, rows, cols), np.random.default_rng(1)
    grid = rng.uniform(1e-4, 1e-3, (1, 1) if scales == "one" else (3, 3)).astype(np.float32)
    stored: Any = grid
    given = torch.from_numpy(grid)
    if scales == "bfloat16":
        given = given.to(torch.bfloat16)
        stored = Bits("BF16", given.view(torch.int16).numpy())
    elif scales == "e8m0":
        codes = rng.integers(110, 125, (3, 3)).astype(np.uint8)
        stored, given = Bits("F8_E8M0", codes), torch.from_numpy(codes).view(torch.float8_e8m0fnu)
    config: dict[str, Any] = dict(FP8)
    if scales == "one":
        stored, config["weight_block_size"] = grid.reshape(()), None
    tensors = {f"{MODULE}.weight": weight, f"{MODULE}.weight_scale_inv": stored}
    made, taken = read(tmp_path, config, tensors, dtype=dtype)
    numbers = torch.from_numpy(weight.array).view(torch.float8_e4m3fn)
    theirs = Fp8Dequantize(None)._dequantize_one(numbers, given, getattr(torch, dtype))
    np.testing.assert_array_equal(made[f"{MODULE}.weight"].values, theirs.float().numpy())
    assert taken == frozenset(tensors)


def test_the_last_blocks_may_be_smaller(tmp_path: Path) -> None:
    weight, scales = e4m3(2, OUT, IN), np.random.default_rng(2).uniform(1e-4, 1e-3, (3, 2)).astype(np.float32)
    config = {**FP8, "weight_block_size": [16, 64]}
    made, _ = read(
        tmp_path, config, {f"{MODULE}.weight": weight, f"{MODULE}.weight_scale_inv": scales}, dtype="float32"
    )
    wanted = [
        [np.float32(scalar_e4m3(int(weight.array[r, c]))) * scales[r // 16, c // 64] for c in range(IN)]
        for r in range(OUT)
    ]
    np.testing.assert_array_equal(made[f"{MODULE}.weight"].values, np.array(wanted, np.float32))


@pytest.mark.parametrize("scale", [np.float32(0.01).reshape(()), np.array([0.01], np.float32)])
def test_one_scale_a_tensor_as_autofp8_has_it(tmp_path: Path, scale: Any) -> None:
    weight = e4m3(3, OUT, IN)
    config = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    tensors = {f"{MODULE}.weight": weight, f"{MODULE}.weight_scale": scale, f"{MODULE}.input_scale": scale}
    made, taken = read(tmp_path, config, tensors)
    wanted = decode("x", "F8_E4M3", weight.array) * np.float32(0.01)
    np.testing.assert_array_equal(made[f"{MODULE}.weight"].values, bf16_values(wanted))
    assert (made[f"{MODULE}.weight"].format, taken) == ("BF16", frozenset(tensors))


def test_rows_of_fbgemm(tmp_path: Path) -> None:
    weight, scales = e4m3(4, OUT, IN), np.random.default_rng(4).uniform(1e-4, 1e-3, (OUT, 1)).astype(np.float32)
    tensors = {f"{MODULE}.weight": weight, f"{MODULE}.weight_scale": scales}
    made, taken = read(tmp_path, FBGEMM, tensors)
    matrix = made[f"{MODULE}.weight"]
    np.testing.assert_array_equal(matrix.values, bf16_values(decode("x", "F8_E4M3", weight.array) * scales))
    assert (matrix.format, taken) == ("BF16", frozenset(tensors))


@pytest.mark.parametrize("down_shape", [(3, 32, 1), (3, 1, 32)])
def test_llama4s_experts_in_one_tensor(tmp_path: Path, down_shape: tuple[int, ...]) -> None:
    """One expert after another, output by output, from the layout that FbgemmFp8Llama4TextExperts multiplies with."""
    dim, ffn, at = 32, 16, "language_model.model.layers.1.feed_forward.experts"
    rng = np.random.default_rng(5)
    gate_up, down = e4m3(5, 3, dim, 2 * ffn), e4m3(6, 3, ffn, dim)
    gate_up_scale = rng.uniform(1e-4, 1e-3, (3, 1, 2 * ffn)).astype(np.float32)
    down_scale = rng.uniform(1e-4, 1e-3, down_shape).astype(np.float32)
    tensors = {
        f"{at}.gate_up_proj": gate_up, f"{at}.gate_up_proj_scale": gate_up_scale, f"{at}.down_proj": down,
        f"{at}.down_proj_scale": down_scale,
    }  # fmt: skip
    made, taken = read(tmp_path, FBGEMM, tensors)
    assert (len(made), taken) == (9, frozenset(tensors))
    for expert in range(3):
        for name, first in (("gate_proj", 0), ("up_proj", ffn)):
            values = made[f"{at}.{expert}.{name}.weight"].values
            assert values.shape == (ffn, dim)
            for output in range(ffn):
                codes = gate_up.array[expert, :, first + output]
                wanted = decode("x", "F8_E4M3", codes) * gate_up_scale[expert, 0, first + output]
                np.testing.assert_array_equal(values[output], bf16_values(wanted))
        values = made[f"{at}.{expert}.down_proj.weight"].values
        for output in range(dim):
            wanted = decode("x", "F8_E4M3", down.array[expert, :, output]) * down_scale[expert].reshape(-1)[output]
            np.testing.assert_array_equal(values[output], bf16_values(wanted))
