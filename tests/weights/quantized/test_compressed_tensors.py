"""compressed-tensors against the package that defines it: what it compresses, ours reads as what it decompresses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from tests.weights.quantized.checkpoint import Bits, Matrix, pack_stream, read

OUT, IN = 24, 128
MODULE = "model.layers.0.mlp.down_proj"


def config(weights: dict[str, Any], layout: str, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None, **more,
    }  # fmt: skip


def integers(bits: int, strategy: str, group: int | None = None, symmetric: bool = True) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group, "symmetric": symmetric}


FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}

# id: (layout, weights, dtype of the scales, what it becomes in a bfloat16 model)
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "int4 group": ("pack-quantized", integers(4, "group", 32), "bfloat16", "Q4_0"),
    "int4 channel": ("pack-quantized", integers(4, "channel"), "float16", "Q4_0"),
    "int4 tensor": ("pack-quantized", integers(4, "tensor"), "bfloat16", "Q4_0"),
    "int4 zero points": ("pack-quantized", integers(4, "group", 64, False), "bfloat16", "Q5_0"),
    "int4 float scales": ("pack-quantized", integers(4, "group", 32), "float32", "BF16"),
    "int4 short groups": ("pack-quantized", integers(4, "group", 16), "bfloat16", "BF16"),
    "int8 packed": ("pack-quantized", integers(8, "group", 32), "bfloat16", "Q8_0"),
    "int2 packed": ("pack-quantized", integers(2, "group", 32), "float16", "Q4_0"),
    "int8 channel": ("int-quantized", integers(8, "channel"), "bfloat16", "Q8_0"),
    "int8 tensor": ("int-quantized", integers(8, "tensor"), "float16", "Q8_0"),
    "int8 zero points": ("int-quantized", integers(8, "channel", None, False), "bfloat16", "BF16"),
    "float8 channel": ("float-quantized", {**FLOAT8, "strategy": "channel"}, "bfloat16", "BF16"),
    "float8 tensor": ("float-quantized", {**FLOAT8, "strategy": "tensor"}, "float32", "BF16"),
    "float8 block": (
        "float-quantized", {**FLOAT8, "strategy": "block", "block_structure": [16, 48]}, "bfloat16", "BF16"
    ),
    "naive": ("naive-quantized", integers(8, "channel"), "bfloat16", "Q8_0"),
}  # fmt: skip


def compress(layout: str, weights: dict[str, Any], scale_dtype: str, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """A random matrix as the package stores it, and the numbers it says these are."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_args import QuantizationArgs

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
    generator = torch.Generator().manual_seed(seed)
    shape = {"group": (OUT, IN // (args.group_size or 1)), "channel": (OUT, 1), "tensor": (1,)}.get(args.strategy)
    if shape is None:
        height, width = args.block_structure
        shape = (-(-OUT // height), -(-IN // width))
    steps = 2**args.num_bits if args.type == "int" else 400
    scale = (0.5 + torch.rand(shape, generator=generator)) * 0.2 / steps
    state = {"weight": torch.randn((OUT, IN), generator=generator) * 0.05, "weight_scale": scale}
    state = {name: value.to(getattr(torch, scale_dtype)) for name, value in state.items()}
    if not args.symmetric:
        half = 2 ** (args.num_bits - 1)
        state["weight_zero_point"] = torch.randint(-half, half, shape, generator=generator, dtype=torch.int8)
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"]


def arrays(stored: dict[str, Any]) -> dict[str, Any]:
    """torch tensors as arrays, under the module's name."""
    import torch

    special = {torch.bfloat16: ("BF16", torch.int16), torch.float8_e4m3fn: ("F8_E4M3", torch.uint8)}
    found: dict[str, Any] = {}
    for name, value in stored.items():
        word, view = special.get(value.dtype, ("", value.dtype))
        array = value.contiguous().view(view).numpy()
        found[f"{MODULE}.{name}"] = Bits(word, array) if word else array
    return found


def rounded(values: np.ndarray[Any, Any], dtype: Any) -> Any:
    import torch

    return torch.from_numpy(values.copy()).to(dtype).float().numpy()


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_the_package_decompresses(tmp_path: Path, case: str) -> None:
    import torch

    layout, weights, scale_dtype, becomes = CASES[case]
    stored, theirs = compress(layout, weights, scale_dtype)
    made, taken = read(tmp_path, config(weights, layout), arrays(stored))
    matrix = made[f"{MODULE}.weight"]
    assert (matrix.format, taken) == (becomes, frozenset(f"{MODULE}.{name}" for name in stored))
    assert theirs.dtype == getattr(torch, scale_dtype)
    if becomes.startswith("Q"):  # more exact than theirs, which rounds the product to the scales' dtype
        np.testing.assert_array_equal(rounded(matrix.values, theirs.dtype), theirs.float().numpy())
    else:
        np.testing.assert_array_equal(matrix.values, theirs.to(torch.bfloat16).float().numpy())


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_floats_in_the_checkpoints_dtype(tmp_path: Path, dtype: str) -> None:
    import torch

    layout, weights, _, _ = CASES["float8 channel"]
    stored, theirs = compress(layout, weights, dtype)
    made, _ = read(tmp_path, config(weights, layout), arrays(stored), dtype=dtype)
    np.testing.assert_array_equal(made[f"{MODULE}.weight"].values, theirs.float().numpy())
    assert theirs.dtype == getattr(torch, dtype)


# Without the package: what it no longer has, and the configuration.


def packed(group_of: list[int] | None = None, scale: float = 0.25) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Four-bit integers with scales that are powers of two, by groups of 32; and the weights, one by one."""
    rng = np.random.default_rng(0)
    q = rng.integers(-8, 8, (OUT, IN))
    scales = (scale * 2.0 ** rng.integers(-3, 3, (OUT, IN // 32))).astype(np.float16)
    tensors = {
        f"{MODULE}.weight_packed": pack_stream(q + 8, 4), f"{MODULE}.weight_scale": scales,
        f"{MODULE}.weight_shape": np.array([OUT, IN]),
    }  # fmt: skip
    groups = [i // 32 for i in range(IN)]
    if group_of is not None:
        tensors[f"{MODULE}.weight_g_idx"] = np.array(group_of, np.int32)
        groups = group_of if min(group_of) >= 0 else groups
    wanted = np.array([[float(scales[o, groups[i]]) * int(q[o, i]) for i in range(IN)] for o in range(OUT)])
    return tensors, wanted


INT4 = config(integers(4, "group", 32), "pack-quantized")


def matrix_of(directory: Path, settings: dict[str, Any], tensors: dict[str, Any]) -> Matrix:
    return read(directory, settings, tensors, dtype="float16")[0][f"{MODULE}.weight"]


def test_activation_order(tmp_path: Path) -> None:
    """weight_g_idx (actorder "group", which the package wrote until 2026): the group of each input; -1 means none."""
    for groups, becomes in (([-1] * IN, "Q4_0"), ([i % 4 for i in range(IN)], "F16"), (None, "Q4_0")):
        tensors, wanted = packed(groups)
        matrix = matrix_of(tmp_path, INT4, tensors)
        assert matrix.format == becomes
        np.testing.assert_array_equal(matrix.values, wanted)


def with_group(**changes: Any) -> dict[str, Any]:
    return {**INT4, "config_groups": {"group_0": {**INT4["config_groups"]["group_0"], **changes}}}


def test_targets_choose_the_scheme(tmp_path: Path) -> None:
    """Names, regular expressions from the beginning, classes; the first target that fits decides."""
    tensors, wanted = packed()
    eight = {"targets": ["Linear"], "weights": integers(8, "channel")}
    four = INT4["config_groups"]["group_0"]
    for target in (MODULE, r"re:.*down_proj$", r"re:model\.layers", "Linear"):
        for groups in ({"a": {**four, "targets": [target]}, "b": eight}, {"a": {**four, "targets": ["no", target]}}):
            matrix = matrix_of(tmp_path, {**INT4, "config_groups": groups}, tensors)
            np.testing.assert_array_equal(matrix.values, wanted)
    groups = {"a": eight, "b": {**four, "targets": [MODULE]}}  # the class comes first, and says eight bits
    with pytest.raises(ModelFileError, match="says 24 x 128, which 8 bits a weight do not pack"):
        read(tmp_path, {**INT4, "config_groups": groups}, tensors)
    groups = {"a": {**eight, "targets": ["re:layers"]}, "b": {**four, "targets": ["down_proj"]}}
    with pytest.raises(ModelFileError, match=r"no group of quantization_config names model\.layers\.0\.mlp\.down_proj"):
        read(tmp_path, {**INT4, "config_groups": groups}, tensors)


def test_one_group_serves_modules_whose_names_have_changed(tmp_path: Path) -> None:
    tensors, wanted = packed()
    matrix = matrix_of(tmp_path, with_group(targets=["language_model.layers.0.mlp.down_proj"]), tensors)
    np.testing.assert_array_equal(matrix.values, wanted)


def test_scales_of_activations_are_left_aside(tmp_path: Path) -> None:
    tensors, wanted = packed()
    extra = {
        f"{MODULE}.input_scale": np.ones(1, np.float32),
        "model.layers.0.self_attn.k_scale": np.ones(1, np.float32),
    }
    activations = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    made, taken = read(tmp_path, with_group(input_activations=activations), {**tensors, **extra})
    np.testing.assert_array_equal(made[f"{MODULE}.weight"].values, wanted)
    assert set(extra) <= taken


REFUSED: dict[str, tuple[dict[str, Any], type[HerderError], str]] = {
    "layout": ({"format": "nvfp4-pack-quantized"}, UnsupportedModel, "format 'nvfp4-pack-quantized' is not supported"),
    "sparse": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, UnsupportedModel, "sparsity_config"),
    "rotated": ({"transform_config": {"config_groups": {"R1": {}}}}, UnsupportedModel, "rotated activations"),
    "ignored": ({"ignore": ["re:.*down_proj"]}, ModelFileError, "is on quantization_config.ignore, but is quantized"),
    "no groups": ({"config_groups": {}}, ModelFileError, "config_groups is {}: expected an object of groups"),
    "not a regex": ({"ignore": ["re:("]}, ModelFileError, "ignore is 're:(': not a regular expression"),
    "unknown key": ({"turbo": 1}, UnsupportedModel, "quantization_config.turbo = 1 is not known here"),
    "dynamic": (with_group(weights={**integers(4, "group", 32), "dynamic": True}), UnsupportedModel, "dynamic = True"),
    "bits": (with_group(weights=integers(3, "group", 32)), UnsupportedModel, "packed from int of 3 bits"),
    "strategy": (with_group(weights=integers(4, "token")), UnsupportedModel, "strategy = 'token'"),
    "group": (with_group(weights=integers(4, "channel", 32)), ModelFileError, "strategy is channel with group_size 32"),
    "group's key": (with_group(turbo=1), UnsupportedModel, "config_groups.group_0.turbo = 1 is not known here"),
    "group size": (with_group(weights=integers(4, "group", 64)), ModelFileError, "weight_scale has shape 24 x 4, but"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused(tmp_path: Path, case: str) -> None:
    changes, kind, message = REFUSED[case]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read(tmp_path, {**INT4, **changes}, packed()[0])
    assert "\n" not in str(caught.value)
