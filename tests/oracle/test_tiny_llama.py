"""The native forward pass in float32 agrees with transformers on small random models, whatever their shape.

A failure names the first activation that differs: "layers.3.attn.out max|d| = 0.12".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.config import Rope
from tests.oracle import activations, ours
from tests.tiny import VOCAB, write_tiny_hf

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
LENGTH = 90  # three KV pages, the last one partly filled

LLAMA3 = Rope(5e5, "llama3", factor=8.0, original_context=64)
YARN = Rope(1e4, "yarn", factor=4.0, original_context=64)
LONGROPE = Rope(
    1e4, "longrope", factor=4.0, original_context=64,
    factors=tuple(1 + 0.1 * i for i in range(8)), long_factors=tuple(1.5 + 0.4 * i for i in range(8)),
)  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"heads": 4, "kv_heads": 2},
    "one KV head": {"heads": 4, "kv_heads": 1},
    "as many KV heads": {"heads": 4, "kv_heads": 4},
    "three groups": {"heads": 9, "kv_heads": 3, "dim": 144},
    "narrow heads": {"head_dim": 8},
    "wide heads": {"head_dim": 48},
    "head_dim 128": {"heads": 2, "kv_heads": 1, "head_dim": 128},
    "odd widths": {"heads": 3, "kv_heads": 1, "dim": 60, "head_dim": 24, "ffn_dim": 100},
    "untied": {"tied": False},
    "attention biases": {"attention_bias": True},
    "biases everywhere": {"attention_bias": True, "mlp_bias": True, "tied": False},
    "loose norm": {"norm_eps": 1e-2},
    "deep": {"layers": 6},
    "high theta": {"rope": Rope(5e5)},
    "linear": {"rope": Rope(1e4, "linear", factor=4.0)},
    "llama3": {"rope": LLAMA3},
    "yarn": {"rope": YARN},
    "longrope": {"rope": LONGROPE},
    "mistral": {"architecture": "mistral"},
    "sliding window": {"architecture": "mistral", "window": 24},
}


def reference_model(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def prompt(seed: int = 0, length: int = LENGTH) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, length)]


def compare(path: Path, ids: list[int]) -> None:
    theirs = activations.record(reference_model(path), ids)
    # LongRoPE's frequencies are fixed by the context we are loaded with; transformers takes the sequence at hand.
    with ours.executor(path, "float32", context=max(len(ids), 96)) as model:
        whole = ours.activations(model, ids)
        assert activations.first_divergence(whole, theirs, TOLERANCE) is None
        for chunk in (1, 7):
            stepwise = ours.logits(model, ids, chunk)
            np.testing.assert_array_equal(stepwise, whole["logits"], f"{chunk} tokens at a time")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    tiny = write_tiny_hf(tmp_path / "model", seed=1, **shape)
    compare(tiny.path, prompt())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_agrees_on_half_precision_files(tmp_path: Path, dtype: str) -> None:
    tiny = write_tiny_hf(tmp_path / "model", dtype=dtype, seed=2, layers=3)
    compare(tiny.path, prompt(1))


@pytest.mark.parametrize("tied", [False, True])
def test_agrees_on_a_directory_that_transformers_wrote(tmp_path: Path, tied: bool) -> None:
    """Nothing in the file is of our making."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    compare(tmp_path / "model", prompt(4))


def test_the_first_divergence_is_named(tmp_path: Path) -> None:
    """A model with one damaged matrix diverges first where that matrix is used."""
    import torch

    tiny = write_tiny_hf(tmp_path / "model", seed=5, layers=3)
    model = reference_model(tiny.path)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[5] += 0.5
    theirs = activations.record(model, prompt())
    with ours.executor(tiny.path, "float32") as native:
        report = activations.first_divergence(ours.activations(native, prompt()), theirs, TOLERANCE)
    assert report is not None
    assert report.startswith("layers.1.attn.out max|d| = ")
    assert "column 5" in report
