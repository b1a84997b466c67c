"""RoPE frequencies against transformers, and the rules transformers does not have."""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from herder.core.config import ModelConfig, Rope
from herder.core.errors import ModelFileError
from herder.weights.rope import inv_freq
from tests.tiny import hf_config, tiny_config

SHORT = tuple(1.0 + i / 10 for i in range(32))
LONG = tuple(1.0 + i for i in range(32))

KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256},
    "llama3-wide": {
        "factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 64, "original_max_position_embeddings": 512,
    },
    "yarn": {"factor": 16.0, "original_max_position_embeddings": 256},
    "yarn-betas": {"factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 8, "beta_slow": 2.0},
    "yarn-mscale": {"factor": 40.0, "original_max_position_embeddings": 256, "mscale": 0.7, "mscale_all_dim": 1.0},
    "yarn-whole": {"factor": 4.0, "original_max_position_embeddings": 256, "truncate": False},
    "yarn-attention": {"factor": 4.0, "original_max_position_embeddings": 256, "attention_factor": 0.5},
    "longrope": {"original_max_position_embeddings": 256, "short_factor": list(SHORT), "long_factor": list(LONG)},
    "longrope-factor": {
        "original_max_position_embeddings": 256, "short_factor": list(SHORT), "long_factor": list(LONG), "factor": 32.0,
    },
}  # fmt: skip


def make(rope: Rope, **shape: Any) -> ModelConfig:
    return tiny_config(dim=256, heads=4, context=1024, rope=rope, **shape)  # head_dim 64


@pytest.mark.oracle
@pytest.mark.parametrize("context", [16, 256, 1024, 5000])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("case", KINDS)
def test_equals_transformers(case: str, theta: float, context: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from herder.weights.config_hf import config_from_hf

    kind = case.split("-")[0]
    parameters = {"rope_type": kind, "rope_theta": theta, **KINDS[case]}
    raw = {**hf_config(make(Rope())), "rope_parameters": parameters}
    theirs = LlamaConfig(**{k: v for k, v in raw.items() if k not in ("model_type", "architectures")})
    if kind == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(theirs)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=context)
    frequencies, ours = inv_freq(config_from_hf("config.json", raw), context)
    assert frequencies.typecode == "f"
    np.testing.assert_allclose(np.array(frequencies), expected.numpy(), rtol=2e-6)  # theirs is all float32
    assert ours == pytest.approx(factor, rel=1e-12)


def test_default_is_the_formula() -> None:
    frequencies, factor = inv_freq(make(Rope(theta=10000.0)), 1024)
    assert frequencies == array("f", [10000.0 ** (-i / 32) for i in range(32)])
    assert factor == 1.0


def test_llama3_with_equal_bounds_is_a_step() -> None:
    """Llama 4 Scout's bounds: no division by zero, and nothing between kept and divided."""
    rope = Rope(5e5, "llama3", 16.0, 1024, low_freq_factor=1.0, high_freq_factor=1.0)
    plain, _ = inv_freq(make(Rope(5e5)), 1024)
    scaled, _ = inv_freq(make(rope), 1024)
    for before, after in zip(plain, scaled, strict=True):
        divided = 2 * math.pi / before > 1024
        assert after == pytest.approx(before / 16 if divided else before, rel=1e-6)


def test_ggufs_divisors_replace_the_llama3_formula() -> None:
    """As Meta's converter writes them: the plain frequency over the scaled one."""
    config = make(Rope(5e5, "llama3", 8.0, 256))
    plain, _ = inv_freq(make(Rope(5e5)), 1024)
    scaled, _ = inv_freq(config, 1024)
    divisors = tuple(float(np.float32(p / s)) for p, s in zip(plain, scaled, strict=True))
    for kind in ("default", "llama3"):
        got, factor = inv_freq(make(Rope(5e5, kind, 8.0, 256, factors=divisors)), 1024)
        np.testing.assert_allclose(np.array(got), np.array(scaled), rtol=3e-7)
        assert factor == 1.0


def test_ggufs_divisors_come_before_linear_scaling() -> None:
    both, _ = inv_freq(make(Rope(factors=SHORT, kind="linear", factor=4.0)), 1024)
    divisors, _ = inv_freq(make(Rope(factors=SHORT)), 1024)
    np.testing.assert_allclose(np.array(both) * 4, np.array(divisors), rtol=1e-7)


def test_dynamic_is_fixed_by_the_configured_context() -> None:
    config = make(Rope(kind="dynamic", factor=2.0, original_context=1024))
    plain, _ = inv_freq(make(Rope()), 1024)
    assert inv_freq(config, 1)[0] == inv_freq(config, 1024)[0] == plain
    longer, longest = inv_freq(config, 2048)[0], inv_freq(config, 4096)[0]
    assert longest[-1] < longer[-1] < plain[-1] and longer[0] == plain[0] == 1.0


def test_a_single_rotation() -> None:
    config = tiny_config(dim=8, heads=4, rope=Rope(kind="dynamic", factor=2.0))
    assert list(inv_freq(config, 5000)[0]) == [1.0]


def test_longrope_switches_beyond_the_original_context() -> None:
    rope = Rope(1e4, "longrope", 4.0, 256, factors=SHORT, long_factors=LONG)
    assert inv_freq(make(rope), 256)[0][1] > inv_freq(make(rope), 257)[0][1]
    assert inv_freq(make(replace(rope, attention_factor=1.5)), 10)[1] == 1.5


def test_a_scaling_that_gives_no_number_is_refused() -> None:
    with pytest.raises(ModelFileError, match="linear with factor 1e-300"):
        inv_freq(make(Rope(kind="linear", factor=1e-300)), 1024)
    with pytest.raises(ModelFileError, match="linear"):
        inv_freq(make(Rope(kind="linear", factor=1e300)), 1024)
