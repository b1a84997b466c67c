"""bitsandbytes against its published definition, weight by weight, and against the package itself where there is one.

The wheel takes 125 MB, mostly CUDA libraries, so the suite goes without; `pip install --no-deps bitsandbytes` and
`pytest tests/weights/quantized/test_bitsandbytes.py` run the comparison.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from tests.weights.quantized.checkpoint import Bits, bf16_values, read

OUT, IN = 24, 96
NAME = "model.layers.0.self_attn.v_proj.weight"
CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
CONFIG8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}

# QLoRA, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [
    0.0, 0.005208333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25, 0.0, -0.005208333, -0.66666667, -1.0,
    -0.33333333, -0.5, -0.16666667, -0.25,
]  # fmt: skip


def blob(values: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def four_bits(kind: str, block: int, nested: bool, dtype: str = "bfloat16", storage: str = "U8") -> tuple[Any, Any]:
    """Random indices and scales as tensors, and the weights in float32, one by one."""
    rng = np.random.default_rng(block)
    table = np.array(NF4 if kind == "nf4" else FP4, np.float32)
    indices = rng.integers(0, 16, OUT * IN)
    packed = np.array([indices[i] << 4 | indices[i + 1] for i in range(0, OUT * IN, 2)], np.uint8)
    blocks = -(-OUT * IN // block)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": [OUT, IN]}
    tensors: dict[str, Any] = {NAME + ".quant_map": table}
    if nested:
        codes, coarse = rng.uniform(-1, 1, 256).astype(np.float32), rng.uniform(0.01, 0.02, -(-blocks // 16))
        fine, coarse = rng.integers(0, 256, blocks).astype(np.uint8), coarse.astype(np.float32)
        state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 0.0371}
        tensors |= {NAME + ".nested_absmax": coarse, NAME + ".nested_quant_map": codes}
        absmax = np.array([codes[fine[b]] * coarse[b // 16] + np.float32(0.0371) for b in range(blocks)], np.float32)
        tensors[NAME + ".absmax"] = fine
    else:
        absmax = tensors[NAME + ".absmax"] = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    stored = packed.reshape(-1, 1) if storage == "U8" else Bits(storage, packed.view(np.uint16).reshape(-1, 1))
    tensors |= {NAME: stored, f"{NAME}.quant_state.bitsandbytes__{kind}": blob(state)}
    flat = [table[indices[i]] * absmax[i // block] for i in range(OUT * IN)]
    return tensors, np.array(flat, np.float32).reshape(OUT, IN)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("block", "nested", "storage"), [(64, False, "U8"), (64, True, "U8"), (128, True, "BF16")])
def test_four_bits(
    tmp_path: Path, kind: str, block: int, nested: bool, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from herder.weights.quantized import made as module

    monkeypatch.setattr(module, "SLAB", 5 * IN)  # slabs begin inside a block
    tensors, wanted = four_bits(kind, block, nested, storage=storage)
    made, taken = read(tmp_path, CONFIG, tensors, dtype="float16")
    assert (made[NAME].format, taken) == ("BF16", frozenset(tensors))  # the dtype that quant_state names
    np.testing.assert_array_equal(made[NAME].values, bf16_values(wanted))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_four_bits_in_other_types(tmp_path: Path, dtype: str) -> None:
    tensors, wanted = four_bits("nf4", 64, True, dtype)
    made, _ = read(tmp_path, CONFIG, tensors)
    np.testing.assert_array_equal(made[NAME].values, wanted.astype(dtype).astype(np.float32))


def eight_bits() -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(8)
    q, scb = rng.integers(-127, 128, (OUT, IN)).astype(np.int8), rng.uniform(0.1, 2, OUT).astype(np.float32)
    inverse = np.float32(1 / 127)
    wanted = [[np.float32(q[r, c]) * scb[r] * inverse for c in range(IN)] for r in range(OUT)]
    module = NAME.removesuffix(".weight")
    tensors = {NAME: q, module + ".SCB": scb, module + ".weight_format": np.array(0, np.uint8)}
    return tensors, np.array(wanted, np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_eight_bits(tmp_path: Path, dtype: str) -> None:
    tensors, wanted = eight_bits()
    made, taken = read(tmp_path, CONFIG8, tensors, dtype=dtype)
    rounded = bf16_values(wanted) if dtype == "bfloat16" else wanted.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(made[NAME].values, rounded)
    assert taken == frozenset(tensors)


STATE = f"{NAME}.quant_state.bitsandbytes__nf4"
WHOLE = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [OUT, IN]}
REFUSED: dict[str, tuple[dict[str, Any], type[HerderError], str]] = {
    "other shape": ({STATE: blob({**WHOLE, "shape": [OUT, 64]})}, ModelFileError, "has 1152 bytes, but 24 x 64"),
    "blocks": ({STATE: blob({**WHOLE, "blocksize": 128})}, ModelFileError, "absmax has shape 36, but"),
    "other bytes": (
        {NAME: np.zeros((7, 1), np.uint8)},
        ModelFileError,
        "has 7 bytes, but 24 x 96 weights of four bits",
    ),
    "no shape": ({STATE: blob({**WHOLE, "shape": None})}, ModelFileError, "shape is None: expected [outputs, inputs]"),
    "other kind": ({STATE: blob({**WHOLE, "quant_type": "fp4"})}, ModelFileError, "quant_type is 'fp4'"),
    "no JSON": ({STATE: np.zeros(9, np.uint8)}, ModelFileError, "not valid JSON"),
    "dtype": ({STATE: blob({**WHOLE, "dtype": "float64"})}, UnsupportedModel, "dtype 'float64' is not supported"),
    "new key": ({STATE: blob({**WHOLE, "turbo": 1})}, UnsupportedModel, "'turbo' is not known"),
    "infinite": ({NAME + ".absmax": np.full(36, np.inf, np.float32)}, ModelFileError, "scales that are not finite"),
    "table": ({NAME + ".quant_map": np.zeros(15, np.float32)}, ModelFileError, "quant_map has shape 15, but"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    changes, kind, message = REFUSED[case]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read(tmp_path, CONFIG, {**four_bits("nf4", 64, False)[0], **changes})
    assert "\n" not in str(caught.value)


def test_eight_bits_in_a_kernels_order_are_refused(tmp_path: Path) -> None:
    tensors, _ = eight_bits()
    tensors[NAME + "_format"] = np.array(2, np.uint8)
    with pytest.raises(UnsupportedModel, match="is 2: only 0, row by row, is supported"):
        read(tmp_path, CONFIG8, tensors)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_it_is_what_the_package_dequantizes(tmp_path: Path, kind: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="pip install --no-deps bitsandbytes (125 MB)")
    import torch

    # Rows of whole blocks: its CPU kernel (0.50) is wrong about others, unlike its own reference in backends/default.
    weight = torch.randn((OUT, 128), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    if kind == "int8":
        q, scb, _ = functional.int8_vectorwise_quant(weight.half())
        tensors = {NAME: q.numpy(), NAME.replace("weight", "SCB"): scb.numpy()}
        theirs = functional.int8_vectorwise_dequant(q, scb)
        made, _ = read(tmp_path, CONFIG8, tensors, dtype="float32")
    else:
        packed, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=True)
        parts = state.as_dict(packed=True)
        tensors = {NAME: packed.numpy()} | {f"{NAME}.{name}": part.numpy() for name, part in parts.items()}
        theirs = functional.dequantize_4bit(packed, state)
        made, _ = read(tmp_path, CONFIG, tensors)
    np.testing.assert_array_equal(made[NAME].values, theirs.float().numpy())
