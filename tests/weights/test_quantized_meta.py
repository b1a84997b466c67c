"""Meta's fp8 and int4 checkpoints: what we read is what the stored numbers mean, by torch or Meta's own code."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.formats import reference
from herder.formats.table import BY_ID
from herder.weights.quantized_llama32 import hadamard
from herder.weights.source import open_model
from tests.tiny import random_weights, tiny_config
from tests.weights.meta_files import dense_state, params, split

pytestmark = pytest.mark.oracle


def floats(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Canonical name -> float32 values in canonical row order; and the format each became."""
    values, formats = {}, {}
    with open_model(directory) as model:
        for tensor in model.load():
            rows = reference.unpack(BY_ID[tensor.format_id], tensor.view(), tensor.rows, tensor.cols)
            values[tensor.name] = rows if tensor.row_map is None else rows[np.asarray(tensor.row_map)]
            formats[tensor.name] = tensor.format.name
    return values, formats


def bfloat16(values: Any) -> Any:
    """Rounded once, as float32."""
    import torch

    return torch.as_tensor(values, dtype=torch.float32).to(torch.bfloat16).float().numpy()


def refused(directory: Path, kind: type[HerderError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        floats(directory)
    assert "\n" not in str(caught.value)


def save(directory: Path, shards: list[dict[str, Any]], parameters: dict[str, Any]) -> None:
    import torch

    directory.mkdir(exist_ok=True)
    (directory / "params.json").write_text(json.dumps(parameters))
    for rank, shard in enumerate(shards):
        torch.save(shard, directory / f"consolidated.{rank:02d}.pth")


def row_wise(matrix: Any) -> tuple[Any, Any]:
    """fbgemm's quantize_fp8_per_row: e4m3 values and a float32 scale a row."""
    import torch

    scale = matrix.float().abs().amax(-1) / 448
    return (matrix.float() / scale[..., None]).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("ranks", [1, 2])
def test_fp8_feed_forward_networks(tmp_path: Path, ranks: int) -> None:
    """As in Llama 3.1 405B FP8: the first and last layer stay; each rank has scales of its own, also of w2."""
    import torch

    config = tiny_config(tied=False, layers=4)
    weights = random_weights(config, "F32", 1)[0]
    shards = [
        {k: torch.tensor(v).bfloat16() for k, v in part.items()} for part in split(dense_state(config, weights), ranks)
    ]
    expected: dict[str, list[Any]] = {}
    for rank, shard in enumerate(shards):
        scales = {}
        for layer in (1, 2):
            for key in ("w1", "w2", "w3"):
                name = f"layers.{layer}.feed_forward.{key}.weight"
                shard[name], scale = row_wise(shard[name])
                scales[f"{layer}_feed_forward.{key}_{rank}"] = scale
                expected.setdefault(name, []).append(shard[name].float() * scale[:, None])
        tmp_path.joinpath("m").mkdir(exist_ok=True)
        torch.save(scales, tmp_path / "m" / f"fp8_scales_{rank}.pt")
    save(tmp_path / "m", shards, params(config))
    values, formats = floats(tmp_path / "m")
    for name, parts in expected.items():
        _, layer, _, key, _ = name.split(".")
        canonical = f"model.layers.{layer}.mlp.{dict(w1='gate', w2='down', w3='up')[key]}_proj.weight"
        whole = torch.cat(parts, dim=1 if key == "w2" else 0).numpy()
        np.testing.assert_array_equal(values[canonical], bfloat16(whole))
    assert set(formats.values()) == {"BF16"}
    other = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(values[other], bfloat16(weights[other]))
    (tmp_path / "m" / f"fp8_scales_{ranks - 1}.pt").unlink()
    refused(tmp_path / "m", HerderError, "fp8_scales|is stored as F8_E4M3")  # type: ignore[type-abstract]


def meta_int4() -> Any:
    """llama_models' quantize_impls, which refuses to be imported without fbgemm but needs it on a GPU only."""
    names = ("fbgemm_gpu", "fbgemm_gpu.experimental", "fbgemm_gpu.experimental.gen_ai")
    modules = {name: types.ModuleType(name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        modules["fbgemm_gpu"].experimental = modules["fbgemm_gpu.experimental"]  # type: ignore[attr-defined]
        modules["fbgemm_gpu.experimental"].gen_ai = modules["fbgemm_gpu.experimental.gen_ai"]  # type: ignore[attr-defined]
        from llama_models import quantize_impls
    return quantize_impls


DIM, HIDDEN, EXPERTS = 128, 256, 2  # int4's groups are 128 inputs
SCOUT: dict[str, Any] = {
    "dim": DIM, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "multiple_of": HIDDEN, "ffn_exp": 4.0,
    "ffn_dim_multiplier": 0.5, "norm_eps": 1e-5, "rope_theta": 5e5, "nope_layer_interval": 4, "use_qk_norm": True,
    "moe_args": {"num_experts": EXPERTS, "auto_scale_F": False},
}  # fmt: skip
_MATRICES = {"w1": ("moe_w_in_eD_F", "gate"), "w2": ("moe_w_out_eF_D", "down"), "w3": ("moe_w_swiglu_eD_F", "up")}


def scout_shards(ranks: int) -> list[dict[str, Any]]:
    """Random weights in the released files' layout."""
    import torch

    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).bfloat16()

    shards = []
    norm = random(DIM)
    router = random(DIM, EXPERTS)
    for _ in range(ranks):
        hidden = HIDDEN // ranks
        shard = {"tok_embeddings.weight": random(64 // ranks, DIM), "output.weight": random(64 // ranks, DIM)}
        shard["norm.weight"] = norm
        for layer in range(2):
            at, ffn = f"layers.{layer}.", f"layers.{layer}.feed_forward."
            shard |= {at + "attention.wqkv.weight": random(2 * DIM // ranks, DIM), at + "attention_norm.weight": norm}
            shard |= {at + "attention.wo.weight": random(DIM, DIM // ranks), ffn + "norm.weight": norm}
            shard |= {ffn + "router_DE": router, ffn + "w_out_shared_DF.weight": random(DIM, hidden)}
            shard |= {f"{ffn}{name}.weight": random(hidden, DIM) for name in ("w_in_shared_FD", "w_swiglu_FD")}
            shard |= {f"{ffn}experts.{_MATRICES[k][0]}": random(EXPERTS * DIM, hidden) for k in ("w1", "w3")}
            shard[ffn + "experts.moe_w_out_eF_D"] = random(EXPERTS * hidden, DIM)
        shards.append(shard)
    return shards


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_experts_as_metas_script_quantizes_them(tmp_path: Path, kind: str, ranks: int) -> None:
    """llama4/scripts/quantize.py, step by step: (E, outputs, inputs), quantized, transposed back, flattened. Its int4
    scales are an eighth of a bfloat16, which float16 holds: nothing is rounded again."""
    import torch

    code = meta_int4()
    shards = scout_shards(ranks)
    expected: dict[tuple[int, str, int], list[Any]] = {}
    (tmp_path / "m").mkdir()
    for rank, shard in enumerate(shards):
        scales = {}
        for layer in range(2):
            for key, (stored, _) in _MATRICES.items():
                name = f"layers.{layer}.feed_forward.experts.{stored}"
                weight = shard[name].view(EXPERTS, -1, shard[name].shape[-1]).transpose(1, 2).contiguous()
                if kind == "fp8":
                    packed, scale = row_wise(weight)
                    meaning = packed.float() * scale[..., None]
                else:
                    quantized, each = zip(*[code.int4_row_quantize(one) for one in weight], strict=True)
                    packed, scale = torch.stack([code.pack_int4(one) for one in quantized]), torch.stack(each)
                    spread = scale.transpose(1, 2).repeat_interleave(128, dim=2)
                    meaning = torch.stack(quantized).float() * spread
                saved = packed.transpose(1, 2).reshape(-1, weight.shape[1]).contiguous()
                shard[name] = torch.nn.Parameter(saved.view(torch.float8_e4m3fn), requires_grad=False)
                scales[f"layers.{layer}.feed_forward.experts.{key}"] = scale
                for expert in range(EXPERTS):
                    expected.setdefault((layer, key, expert), []).append(meaning[expert])
        torch.save(scales, tmp_path / "m" / f"{kind}_scales_{rank}.pt")
    save(tmp_path / "m", shards, SCOUT)
    values, formats = floats(tmp_path / "m")
    for (layer, key, expert), parts in expected.items():
        name = f"model.layers.{layer}.mlp.experts.{expert}.{_MATRICES[key][1]}_proj.weight"
        whole = torch.cat(parts, dim=1 if key == "w2" else 0).numpy()
        np.testing.assert_array_equal(values[name], whole if kind == "int4" else bfloat16(whole))
        assert formats[name] == ("Q4_0" if kind == "int4" else "BF16")


# Llama 3.2 1B and 3B


def quantize(matrix: Any, group: int, half_scales: bool) -> tuple[Any, Any]:
    """Symmetric: int8 values -8..7 and a scale for each group of inputs."""
    groups = matrix.reshape(len(matrix), -1, group)
    scales = np.abs(groups).max(-1) / 7.5
    scales = scales.astype(np.float16).astype(np.float32) if half_scales else scales
    return np.clip(np.round(groups / scales[..., None]), -8, 7).reshape(matrix.shape).astype(np.int8), scales


@pytest.mark.parametrize("half_scales", [False, True])
@pytest.mark.parametrize("kind", ["plain", "spinquant", "qlora"])
def test_int4_of_llama_3_2(tmp_path: Path, kind: str, half_scales: bool) -> None:
    """Scales that float16 holds keep the integers (Q4_0, Q8_0); an adaptor or a Hadamard matrix makes float32."""
    import torch

    config = tiny_config(tied=False, ffn_dim=128)
    weights = random_weights(config, "F32", 1)[0]
    state = dense_state(config, weights)
    generator = np.random.default_rng(3)
    shard: dict[str, Any] = {}
    expected = {}
    for name, values in state.items():
        base = name.removesuffix(".weight")
        if values.ndim == 1:
            shard[name], expected[name] = torch.tensor(values).bfloat16(), bfloat16(values)[None]
            continue
        if base in ("tok_embeddings", "output"):
            scales = np.abs(values).max(1, keepdims=True) / 127
            scales = scales.astype(np.float16).astype(np.float32) if half_scales else scales
            integers = np.clip(np.round(values / scales), -128, 127).astype(np.int8)
            meaning = integers * scales
        else:
            integers, scales = quantize(values, 32, half_scales)
            meaning = (integers.reshape(len(values), -1, 32) * scales[..., None]).reshape(values.shape)
            shard[base + ".zeros"] = torch.zeros(scales.shape)
        shard[name], shard[base + ".scales"] = torch.tensor(integers), torch.tensor(scales)
        float_result = None
        if kind == "spinquant" and base.endswith("w2"):
            size = values.shape[1]
            matrix = np.ones((1, 1))
            while len(matrix) < size:
                matrix = np.kron(matrix, [[1, 1], [1, -1]])
            float_result = meaning.astype(np.float64) @ matrix / np.sqrt(size)
        if kind == "qlora" and base.startswith("layers"):
            a = generator.standard_normal((4, values.shape[1])).astype(np.float32)
            b = generator.standard_normal((values.shape[0], 4)).astype(np.float32)
            shard[base + ".adaptor.A.weight"], shard[base + ".adaptor.B.weight"] = torch.tensor(a), torch.tensor(b)
            float_result = meaning + 2.0 * (b.astype(np.float64) @ a)
        exact = meaning if half_scales else bfloat16(meaning)
        expected[name] = exact if float_result is None else float_result
    parameters = params(config)
    parameters["quantization_args"] = {
        "scheme": "int4_weight_int8_dynamic_activation", "group_size": 32, "spinquant": kind == "spinquant",
    }  # fmt: skip
    if kind == "qlora":
        parameters["lora_args"] = {"rank": 4, "scale": 2.0}
    save(tmp_path / "m", [shard], parameters)
    values, formats = floats(tmp_path / "m")
    found = dense_state(config, values)
    for name, wanted in expected.items():
        got = found[name][None] if found[name].ndim == 1 else found[name]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 if wanted.dtype == np.float64 else 0, err_msg=name)
    assert formats["model.embed_tokens.weight"] == ("Q8_0" if half_scales else "BF16")
    up, down = formats["model.layers.0.mlp.up_proj.weight"], formats["model.layers.0.mlp.down_proj.weight"]
    plain = "Q4_0" if half_scales else "BF16"
    assert (up, down) == {"plain": (plain, plain), "spinquant": (plain, "F32"), "qlora": ("F32", "F32")}[kind]
    name = "layers.0.feed_forward.w1"
    for changes, error, message in (
        ({name + ".zeros": torch.ones(128, 2)}, UnsupportedModel, "are not all 0"),
        ({name + ".weight": torch.full((128, 64), 9, dtype=torch.int8)}, ModelFileError, "expected -8 to 7"),
        ({name + ".scales": torch.ones(128, 3)}, ModelFileError, "holds 384 numbers, not 128 x 2"),
        ({name + ".scales": torch.full((128, 2), float("nan"))}, ModelFileError, "scales that are not finite"),
    ):
        save(tmp_path / "m", [{**shard, **changes}], parameters)
        refused(tmp_path / "m", error, message)
    for key, value, message in (
        ("quantization_args", {"scheme": "fp4", "group_size": 32}, "scheme is 'fp4'"),
        ("quantization_args", {**parameters["quantization_args"], "bits": 2}, "bits is not known here"),
        ("quantization_args", None, "is stored as I8|not known here|without quantization_args"),
    ):
        save(tmp_path / "m", [shard], {**parameters, key: value})
        refused(tmp_path / "m", UnsupportedModel, message)


def test_the_hadamard_transform_is_its_own_inverse() -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    np.testing.assert_allclose(hadamard(hadamard(matrix)), matrix, atol=1e-5)
