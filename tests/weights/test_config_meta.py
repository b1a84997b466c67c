"""params.json: the released models' own, the traps in them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from herder.core.config import Experts, LayerPlan, Llama4Vision, ModelConfig, Rope, Temperature
from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.weights.config_meta import config_from_meta, cross_layers
from herder.weights.config_mistral import config_from_mistral

LLAMA31 = Rope(5e5, "llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA32 = Rope(5e5, "llama3", 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
BASE = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-5}
GROUPED = {"n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "vocab_size": 128256, "rope_theta": 5e5}
BIG = {"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}
SMALL = {"n_layers": 16, "dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "use_scaled_rope": True}

# name: params.json, rows of the embedding, (ffn_dim, kv_heads, context, rope)
RELEASED: dict[str, tuple[dict[str, Any], int, tuple[int, int, int, Rope]]] = {
    "LLaMA 7B": ({**BASE, "norm_eps": 1e-6, "vocab_size": -1}, 32000, (11008, 32, 2048, Rope(1e4))),
    "LLaMA 13B": (
        {**BASE, "dim": 5120, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-6, "vocab_size": -1},
        32000, (13824, 40, 2048, Rope(1e4)),
    ),
    "LLaMA 30B": (
        {**BASE, "dim": 6656, "n_heads": 52, "n_layers": 60, "norm_eps": 1e-6, "vocab_size": -1},
        32000, (17920, 52, 2048, Rope(1e4)),
    ),
    "LLaMA 65B": (
        {**BASE, "dim": 8192, "n_heads": 64, "n_layers": 80, "vocab_size": -1}, 32000, (22016, 64, 2048, Rope(1e4)),
    ),
    "llama-2-7b": ({**BASE, "vocab_size": -1}, 32000, (11008, 32, 4096, Rope(1e4))),
    "llama-2-7b-chat": ({**BASE, "norm_eps": 1e-6, "vocab_size": -1}, 32000, (11008, 32, 4096, Rope(1e4))),
    "llama-2-70b": ({**BASE, **BIG, "vocab_size": -1}, 32000, (28672, 8, 4096, Rope(1e4))),
    "CodeLlama-7b": (
        {**BASE, "ffn_dim_multiplier": 1.0, "rope_theta": 1000000}, 32016, (11008, 32, 16384, Rope(1e6)),
    ),
    "CodeLlama-34b": (
        {**BASE, "dim": 8192, "n_heads": 64, "n_layers": 48, "n_kv_heads": 8, "ffn_dim_multiplier": 1.0,
         "rope_theta": 1000000},
        32000, (22016, 8, 16384, Rope(1e6)),
    ),
    "Meta-Llama-3-8B": ({**BASE, **GROUPED}, 128256, (14336, 8, 8192, Rope(5e5))),
    "Meta-Llama-3-70B": ({**BASE, **GROUPED, **BIG}, 128256, (28672, 8, 8192, Rope(5e5))),
    "Llama-3.1-8B": ({**BASE, **GROUPED, "use_scaled_rope": True}, 128256, (14336, 8, 131072, LLAMA31)),
    "Llama-3.1-405B": (
        {**BASE, **GROUPED, "dim": 16384, "n_layers": 126, "n_heads": 128, "multiple_of": 4096,
         "ffn_dim_multiplier": 1.2, "use_scaled_rope": True},
        128256, (53248, 8, 131072, LLAMA31),
    ),
    "Llama-3.2-1B": ({**BASE, **GROUPED, **SMALL}, 128256, (8192, 8, 131072, LLAMA32)),
    "Llama-3.2-3B": (
        {**BASE, **GROUPED, **SMALL, "dim": 3072, "n_heads": 24, "n_layers": 28, "ffn_dim_multiplier": 1.0},
        128256, (8192, 8, 131072, LLAMA32),
    ),
    "Llama-3.2-1B QLoRA": (
        {**BASE, **GROUPED, **SMALL, "lora_args": {"rank": 16, "scale": 2.0}, "quantization_args": {"group_size": 32}},
        128256, (8192, 8, 8192, LLAMA32),
    ),
}  # fmt: skip


def read(values: dict[str, Any], vocab: int = 64, name: str = "model", tied: bool = False) -> ModelConfig:
    return config_from_meta("params.json", values, vocab=vocab, tied=tied, name=name)


@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name: str) -> None:
    values, vocab, (ffn_dim, kv_heads, context, rope) = RELEASED[name]
    config = read(values, vocab, name)
    assert (config.ffn_dim, config.kv_heads, config.context, config.rope) == (ffn_dim, kv_heads, context, rope)
    assert (config.vocab, config.norm_eps) == (vocab, values["norm_eps"])
    assert config.plan == (LayerPlan(),) * values["n_layers"]
    assert read({"model": values}, vocab, name) == config


MOE = {"num_experts": 16, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1, "interleave_moe_layer_step": 1}
SQUARE = {"height": 14, "width": 14}
VISION = {
    "image_size": {"height": 336, "width": 336}, "patch_size": SQUARE, "dim": 1408, "n_layers": 34, "n_heads": 16,
    "mlp_ratio": 4.0, "output_dim": 4096, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip
SCOUT: dict[str, Any] = {
    "dim": 5120, "n_layers": 48, "n_heads": 40, "n_kv_heads": 8, "head_dim": 128, "vocab_size": 202048, "ffn_exp": 4.0,
    "ffn_dim_multiplier": 1.2, "multiple_of": 2048, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True,
    "nope_layer_interval": 4, "attention_chunk_size": 8192, "use_qk_norm": True, "moe_args": MOE, "vision_args": VISION,
}  # fmt: skip


def test_scout() -> None:
    config = read(SCOUT, 202048)
    assert config.experts == Experts(16, 1, 8192, "sigmoid", 8192)
    assert config.plan[0] == LayerPlan(chunk=8192, qk_norm=True, experts=True)
    assert config.plan[3] == LayerPlan(rope=False, temperature=True, experts=True)
    assert sum(layer.rope for layer in config.plan) == 36
    assert config.rope == Rope(5e5, "llama3", 16.0, 8192, low_freq_factor=1.0, high_freq_factor=1.0)
    assert (config.context, config.temperature, config.image_token) == (10485760, Temperature(), 200092)
    assert config.vision == Llama4Vision(1408, 34, 16, 5632, 14, 336, 4096, 4096)
    assert round(config.parameters / 1e9, 1) == 107.8 and round(config.active_parameters / 1e9, 1) == 17.2


def test_maverick_and_guard() -> None:
    moe = {**MOE, "num_experts": 128, "interleave_moe_layer_step": 2}
    maverick = read({**SCOUT, "moe_args": moe, "use_scaled_rope": False, "use_qk_norm": False}, 202048)
    assert [layer.experts for layer in maverick.plan] == [False, True] * 24
    assert (maverick.ffn_dim, maverick.context, maverick.rope) == (16384, 1048576, Rope(5e5))
    guard = {**SCOUT, "moe_args": None, "use_scaled_rope": False, "ffn_dim_multiplier": 0.6}
    guard |= {"nope_layer_interval": None, "attention_chunk_size": None, "use_qk_norm": False}
    config = read(guard, 202048)
    assert (config.plan, config.ffn_dim) == ((LayerPlan(),) * 48, 8192)
    assert (config.experts, config.temperature, config.context) == (None, None, 131072)


def test_what_llama4_files_may_say_and_leave_out() -> None:
    assert read({**SCOUT, "attn_temperature_tuning": False}, 202048).temperature is None
    tuned = read({**SCOUT, "floor_scale": 4096, "attn_scale": 0.2}, 202048)
    assert tuned.temperature == Temperature(4096, 0.2)
    scaled = read({**SCOUT, "rope_scaling_factor": 8.0, "rope_high_freq_factor": 4.0}, 202048).rope
    assert (scaled.factor, scaled.high_freq_factor) == (8.0, 4.0)
    assert read({**SCOUT, "moe_args": {**MOE, "auto_scale_F": False}}, 202048).experts == Experts(
        16, 1, 16384, "sigmoid", 16384
    )


def test_cross_attention_layers_are_spread_as_metas_code_does() -> None:
    assert cross_layers(32, 8) == [3, 7, 11, 15, 19, 23, 27, 31]
    assert cross_layers(80, 20) == list(range(3, 80, 4))
    assert cross_layers(5, 2) == [1, 4]


@pytest.mark.parametrize(("changes", "message", "kind"), [
    ({"alibi": True}, "'alibi' = True is not known here", UnsupportedModel),
    ({"rope_freq_base": 1e6}, "'rope_freq_base' = 1000000.0 is not known here", UnsupportedModel),
    ({"dim": None}, "dim is missing", ModelFileError),
    ({"dim": "wide"}, "dim is 'wide'", ModelFileError),
    ({"dim": 4100}, "dim 4100 is not a multiple of n_heads 32", ModelFileError),
    ({"n_layers": 1 << 30}, "n_layers is 1073741824", ModelFileError),
    ({"head_dim": 64}, "head_dim is 64; only dim / n_heads = 128", UnsupportedModel),
    ({"vocab_size": 32000}, "vocab_size is 32000, but the embedding has 64 rows", ModelFileError),
    ({"norm_eps": 0}, "norm_eps is 0", ModelFileError),
    ({"rope_theta": float("nan")}, "rope_theta is nan", ModelFileError),
    ({"multiple_of": 0}, "multiple_of is 0", ModelFileError),
    ({"ffn_dim_multiplier": 1e300}, None, None),
    ({"use_scaled_rope": True, "rope_high_freq_factor": 0.5}, "rope_high_freq_factor is 0.5", ModelFileError),
    ({"vision_chunk_size": 560}, "do not describe an image encoder", ModelFileError),
    ({"vision_chunk_size": 560, "vision_num_cross_attention_layers": 33}, "do not describe", ModelFileError),
    ({"vision_chunk_size": -1, "vision_num_cross_attention_layers": -1, "vision_max_num_chunks": 4}, None, None),
    ({"model": {"dim": 64}}, "expected all parameters under it", ModelFileError),
    ({"moe_args": {**MOE, "router": "x"}}, r"'moe_args\.router' = 'x' is not known here", UnsupportedModel),
    ({"moe_args": []}, r"moe_args is \[\]: expected an object", ModelFileError),
    ({"vision_args": {**VISION, "patch_size": {"height": 14, "width": 15}}}, "14 x 15; only squares", UnsupportedModel),
    ({"vision_args": {**VISION, "patch_size": None}}, r"vision_args\.patch_size is missing", ModelFileError),
    ({"vision_args": {**VISION, "n_heads": 15}}, "do not go together", ModelFileError),
    ({"moe_args": MOE, "floor_scale": 0.5}, "floor_scale is 0.5", UnsupportedModel),
])  # fmt: skip
def test_refusals(changes: dict[str, Any], message: str | None, kind: type[HerderError] | None) -> None:
    values = {**BASE, **changes}
    if kind is None:
        assert read(values).dim == 4096
        return
    with pytest.raises(kind, match=message) as caught:
        read(values)
    assert str(caught.value).startswith("params.json: ") and "\n" not in str(caught.value)


MISTRAL: dict[str, Any] = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5,
    "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(("changes", "window", "theta", "context"), [
    ({"sliding_window": 4096}, 4096, 1e4, 32768),
    ({"vocab_size": 32768, "rope_theta": 1000000.0}, None, 1e6, 32768),
    ({"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, None, 1e6, 32768),
    ({"moe": {"num_experts": 8, "num_experts_per_tok": 2}, "dim": 6144, "rope_theta": 1e6}, None, 1e6, 65536),
    ({"max_seq_len": 8192, "use_biases": False, "model_type": "transformer", "lora": None}, None, 1e4, 8192),
])  # fmt: skip
def test_mistral(changes: dict[str, Any], window: int | None, theta: float, context: int) -> None:
    config = config_from_mistral("params.json", {**MISTRAL, **changes}, tied=False)
    assert (config.rope, config.context) == (Rope(theta), context)
    assert config.plan == (LayerPlan(window=window, experts="moe" in changes),) * 32
    assert config.experts == (Experts(8, 2, 14336, "softmax") if "moe" in changes else None)


@pytest.mark.parametrize(("changes", "message"), [
    ({"use_biases": True}, "use_biases = True"), ({"model_type": "mamba"}, "model_type = 'mamba'"),
    ({"quantization": {"qformat_weight": "fp8"}}, "quantized weights"), ({"yarn": {}}, "'yarn' = {} is not known"),
    ({"vision_encoder": {"dim": 1}}, "an image encoder"), ({"tied_embeddings": True}, "contradicts the tensors"),
    ({"moe": {"num_experts": 8, "num_experts_per_tok": 2, "shared": 1}}, r"'moe\.shared' = 1 is not known"),
    ({"hidden_dim": None}, "hidden_dim is missing"), ({"moe": 8}, "moe is 8: expected an object"),
])  # fmt: skip
def test_mistral_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HerderError, match=message) as caught:
        config_from_mistral("params.json", {**MISTRAL, **changes}, tied=False)
    assert "\n" not in str(caught.value)
