"""GPTQ against its definition: w = scale * (q - zero), the integers packed as AutoGPTQ's QuantLinear packs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.weights.quantized.checkpoint import bf16_values, pack_stream, read

OUT, IN = 24, 128
MODULE = "model.layers.0.self_attn.q_proj"


class Linear:
    """Random integers, scales and zero points of one module, and the tensors that say so."""

    def __init__(
        self, bits: int, group: int, *, zero: int | None = None, v1: bool = True, act_order: bool = False
    ) -> None:
        rng = np.random.default_rng(bits * 1000 + group)
        self.size = IN if group == -1 else group
        count = -(-IN // self.size)
        self.q = rng.integers(0, 2**bits, (OUT, IN))
        low = 1 if v1 else 0  # v1 stores zero - 1
        self.zeros = rng.integers(low, 2**bits + low, (OUT, count)) if zero is None else np.full((OUT, count), zero)
        self.scales = rng.uniform(0.001, 0.1, (OUT, count)).astype(np.float16)
        self.groups = np.arange(IN) // self.size
        if act_order:
            self.groups = rng.permutation(self.groups)
        self.config: dict[str, Any] = {
            "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": zero is not None,
            "checkpoint_format": "gptq" if v1 else "gptq_v2",
        }  # fmt: skip
        self.tensors: dict[str, Any] = {
            f"{MODULE}.qweight": pack_stream(self.q, bits).T.copy(),
            f"{MODULE}.qzeros": pack_stream((self.zeros - low).T, bits),
            f"{MODULE}.scales": self.scales.T.copy(),
            f"{MODULE}.g_idx": self.groups.astype(np.int32),
        }

    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(out, in), weight by weight: exact, because a product of a float16 and a small integer is a float64."""
        w = np.empty((OUT, IN))
        for o in range(OUT):
            for i in range(IN):
                g = self.groups[i]
                w[o, i] = float(self.scales[o, g]) * (int(self.q[o, i]) - int(self.zeros[o, g]))
        return w


@pytest.mark.parametrize("v1", [True, False], ids=["gptq", "gptq_v2"])
@pytest.mark.parametrize(("bits", "group", "zero", "becomes"), [
    (4, 32, 8, "Q4_0"), (4, 128, 8, "Q4_0"), (4, -1, 8, "Q4_0"), (4, 64, None, "Q5_0"), (2, 64, None, "Q4_0"),
    (3, 64, None, "Q4_0"), (3, 32, 4, "Q4_0"), (8, 32, 128, "Q8_0"), (8, 64, None, "F16"), (4, 16, 8, "F16"),
])  # fmt: skip
def test_what_it_becomes(tmp_path: Path, bits: int, group: int, zero: int | None, becomes: str, v1: bool) -> None:
    linear = Linear(bits, group, zero=zero, v1=v1)
    made, taken = read(tmp_path, linear.config, linear.tensors, dtype="float16")
    matrix = made[f"{MODULE}.weight"]
    assert (matrix.format, taken) == (becomes, frozenset(linear.tensors))
    wanted = linear.weights()
    if becomes == "F16":
        wanted = wanted.astype(np.float16)
    np.testing.assert_array_equal(matrix.values, wanted.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_activation_order_is_expanded_to_the_checkpoints_dtype(tmp_path: Path, dtype: str) -> None:
    linear = Linear(4, 32, act_order=True)
    made, _ = read(tmp_path, linear.config, linear.tensors, dtype=dtype)
    matrix = made[f"{MODULE}.weight"]
    exact = linear.weights().astype(np.float32)
    wanted = {"float16": exact.astype(np.float16).astype(np.float32), "bfloat16": bf16_values(exact), "float32": exact}
    assert matrix.format == {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype]
    np.testing.assert_array_equal(matrix.values, wanted[dtype])


def test_an_order_that_is_none_is_repacked(tmp_path: Path) -> None:
    """static_groups: desc_act chose the order of quantization, but the groups are consecutive inputs."""
    linear = Linear(4, 32, zero=8)
    made, _ = read(tmp_path, {**linear.config, "desc_act": True, "static_groups": True}, linear.tensors)
    assert made[f"{MODULE}.weight"].format == "Q4_0"
    del linear.tensors[f"{MODULE}.g_idx"]
    made, _ = read(tmp_path, linear.config, linear.tensors)
    assert made[f"{MODULE}.weight"].format == "Q4_0"


def test_a_scale_that_float16_cannot_hold_is_expanded(tmp_path: Path) -> None:
    linear = Linear(4, 32, zero=8)
    scales = linear.scales.astype(np.float32)
    scales[3, 1] *= np.float32(1 + 2**-12)
    linear.tensors[f"{MODULE}.scales"] = scales.T.copy()
    made, _ = read(tmp_path, linear.config, linear.tensors, dtype="float32")
    matrix = made[f"{MODULE}.weight"]
    assert matrix.format == "F32"
    np.testing.assert_array_equal(matrix.values, scales[:, linear.groups] * (linear.q - 8).astype(np.float32))


def test_modules_of_their_own_bits(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: patterns match from the beginning of the name, the first that fits decides."""
    linear = Linear(8, 64, zero=128)
    dynamic = {"-:.*mlp": {}, r"+:.*\.q_proj": {"bits": 8, "group_size": 64}, ".*": {"bits": 2}}
    made, _ = read(tmp_path, {**linear.config, "bits": 4, "group_size": 32, "dynamic": dynamic}, linear.tensors)
    assert made[f"{MODULE}.weight"].format == "Q8_0"
    np.testing.assert_array_equal(made[f"{MODULE}.weight"].values, linear.weights())


def test_a_bias_of_zeros_is_no_bias(tmp_path: Path) -> None:
    linear = Linear(4, 32, zero=8)
    name = f"{MODULE}.bias"
    with_zeros = {**linear.tensors, name: np.zeros(OUT, np.float16)}
    assert name in read(tmp_path, linear.config, with_zeros)[1]
    assert name not in read(tmp_path, linear.config, with_zeros, biases=True)[1]
    assert name not in read(tmp_path, linear.config, {**linear.tensors, name: np.ones(OUT, np.float16)})[1]


def test_slabs_join_seamlessly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows at a time, which no word of packed zero points ends with."""
    from herder.weights.quantized import made as module

    monkeypatch.setattr(module, "SLAB", 7 * IN)
    for bits, becomes in ((3, "Q4_0"), (4, "Q5_0"), (8, "F16")):
        linear = Linear(bits, 32)
        made, _ = read(tmp_path, linear.config, linear.tensors, dtype="float16")
        matrix = made[f"{MODULE}.weight"]
        wanted = linear.weights().astype(np.float16 if becomes == "F16" else np.float32)
        assert matrix.format == becomes
        np.testing.assert_array_equal(matrix.values, wanted.astype(np.float32))
