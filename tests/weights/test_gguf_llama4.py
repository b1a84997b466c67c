"""Architecture llama4 of GGUF: what llama.cpp decides without a key, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from herder.core.config import LayerPlan, Temperature
from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.weights.config_gguf import config_from_gguf
from herder.weights.names import Role

SCOUT: dict[str, Any] = {  # as llama.cpp's converter writes Llama-4-Scout-17B-16E
    "general.architecture": "llama4", "general.type": "model", "general.name": "Scout", "general.file_type": 32,
    "llama4.block_count": 48, "llama4.context_length": 10485760, "llama4.embedding_length": 5120,
    "llama4.feed_forward_length": 16384, "llama4.attention.head_count": 40, "llama4.attention.head_count_kv": 8,
    "llama4.rope.freq_base": 500000.0, "llama4.attention.layer_norm_rms_epsilon": 1e-5, "llama4.expert_count": 16,
    "llama4.expert_used_count": 1, "llama4.attention.key_length": 128, "llama4.attention.value_length": 128,
    "llama4.vocab_size": 202048, "llama4.rope.dimension_count": 128, "llama4.interleave_moe_layer_step": 1,
    "llama4.expert_feed_forward_length": 8192, "general.quantization_version": 2,
}  # fmt: skip
ROLES = frozenset({Role.EMBED, Role.HEAD})


def read(**changes: Any) -> Any:
    metadata = SCOUT | {f"llama4.{key.replace('__', '.')}": value for key, value in changes.items()}
    return config_from_gguf("m.gguf", metadata, embedding_rows=202048, roles=ROLES, factors={})


def test_scout() -> None:
    config = read()
    roped = LayerPlan(chunk=8192, qk_norm=True, experts=True)
    everywhere = LayerPlan(rope=False, temperature=True, experts=True)
    assert config.plan == (roped, roped, roped, everywhere) * 12
    assert config.temperature == Temperature(8192, 0.1)
    moe = config.experts
    assert (moe.count, moe.active, moe.ffn_dim, moe.shared_ffn_dim, moe.router) == (16, 1, 8192, 8192, "sigmoid")
    assert (config.architecture, config.ffn_dim, config.tied) == ("llama4", 16384, False)
    assert read(attention__sliding_window=8192, attention__chunk_size=8192) == config
    assert read(attention__sliding_window_pattern=4, rope__freq_base_swa=500000.0) == config


def test_maverick_has_experts_in_every_second_layer_and_no_qk_norm() -> None:
    config = read(expert_count=128, interleave_moe_layer_step=2)
    assert [i for i, plan in enumerate(config.plan) if plan.experts] == list(range(1, 48, 2))
    assert not any(plan.qk_norm for plan in config.plan)


def test_a_window_of_zero_means_rope_and_full_attention_everywhere() -> None:
    config = read(attention__sliding_window=0, expert_count=0, interleave_moe_layer_step=0)
    assert config.plan == (LayerPlan(qk_norm=True),) * 48
    assert config.experts is config.temperature is None


REFUSED: dict[str, tuple[dict[str, Any], type[HerderError], str]] = {
    "window": ({"attention__sliding_window": 4096}, UnsupportedModel, "sliding_window = 4096 .llama.cpp takes chunks"),
    "chunk": ({"attention__chunk_size": 1024}, UnsupportedModel, "chunk_size = 1024 .llama.cpp takes chunks"),
    "pattern": ({"attention__sliding_window_pattern": 6}, UnsupportedModel, "sliding_window_pattern = 6"),
    "gating": ({"expert_gating_func": 1}, UnsupportedModel, "expert_gating_func = 1 .experts not chosen by sigmoid"),
    "shared": ({"expert_shared_count": 2}, UnsupportedModel, "expert_shared_count = 2"),
    "groups": ({"expert_group_count": 4}, UnsupportedModel, "expert_group_count = 4 .experts in groups"),
    "rope": ({"rope__freq_base_swa": 10000.0}, UnsupportedModel, "freq_base_swa = 10000.0 .another RoPE"),
    "unknown": ({"vision__block_count": 34}, UnsupportedModel, r"'llama4.vision.block_count' = 34 is not known"),
    "no step": ({"interleave_moe_layer_step": None}, ModelFileError, "interleave_moe_layer_step is missing"),
    "no width": ({"expert_feed_forward_length": None}, ModelFileError, "expert_feed_forward_length is missing"),
    "no active": ({"expert_used_count": 0}, ModelFileError, "expert_used_count is 0, with 16 experts"),
    "many experts": ({"expert_count": 2**20}, ModelFileError, "expert_count is 1048576"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_key(case: str) -> None:
    changes, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as caught:
        read(**changes)
    assert str(caught.value).startswith("m.gguf: ") and "\n" not in str(caught.value)
