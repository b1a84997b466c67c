"""The torch runtime in float32 agrees with transformers on Mixtral and on the text models of Llama 4.

Chunks and temperature steps are 8 tokens, prompts 40, so that both act. A failure names the first activation that
differs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle import activations, activations_moe, checkpoints, ours

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
LENGTH = 40

MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mixtral": (checkpoints.mixtral, {}),
    "mixtral, window": (checkpoints.mixtral, {"sliding_window": 12}),
    "mixtral, three of five experts": (checkpoints.mixtral, {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "llama 4, every second layer": (checkpoints.llama4_text, {"use_qk_norm": True}),
    "llama 4, every layer": (checkpoints.llama4_text, {"interleave_moe_layer_step": 1, "use_qk_norm": True}),
    "llama 4, no QK norm": (checkpoints.llama4_text, {"use_qk_norm": False}),
    "llama 4, no temperature": (checkpoints.llama4_text, {"attn_temperature_tuning": False}),
    "llama 4, two experts": (checkpoints.llama4_text, {"num_experts_per_tok": 2}),
    "llama 4, eight layers": (checkpoints.llama4_text, {"num_hidden_layers": 8}),
}


def prompt(seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, checkpoints.VOCAB, LENGTH)]


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_transformers(tmp_path: Path, name: str) -> None:
    make, changes = MODELS[name]
    ids = prompt(1)
    theirs = activations_moe.record(make(tmp_path, seed=1, **changes), ids)
    with ours.torch_executor(tmp_path, "float32", context=64) as model:
        whole = ours.activations(model, ids)
        assert activations.first_divergence(whole, theirs, TOLERANCE) is None
        for step in (1, 7):
            stepwise = ours.logits(model, ids, step)
            np.testing.assert_allclose(stepwise, theirs["logits"], atol=TOLERANCE, err_msg=f"{step} tokens at a time")


@pytest.mark.parametrize("name", ["mixtral, window", "llama 4, every layer"])
def test_the_public_api_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    """Through the engine, which may give the layers of bounded reach a KV store of their own."""
    import torch

    import herder

    make, changes = MODELS[name]
    reference, ids = make(tmp_path, seed=3, **changes), prompt(4) + prompt(5) + prompt(6)
    with torch.inference_mode():
        theirs = reference(torch.tensor([ids])).logits[0].numpy()
    with herder.load(tmp_path, runtime="torch", device="cpu", dtype="float32", kv_memory=1 << 20) as llm:
        np.testing.assert_allclose(llm.logits(ids), theirs, atol=TOLERANCE)
        best = llm.generate(ids, max_tokens=1, temperature=0.0, ignore_eos=True).tokens
    assert best == (int(theirs[-1].argmax()),)


def test_the_witness_reports_what_we_report(tmp_path: Path) -> None:
    """Otherwise a new activation would never be compared."""
    ids = prompt(2)
    theirs = activations_moe.record(checkpoints.llama4_text(tmp_path, use_qk_norm=True), ids)
    with ours.torch_executor(tmp_path, "float32", context=64) as model:
        assert set(ours.activations(model, ids)) == set(theirs)
    assert list(theirs)[:2] == ["embed", "layers.0.attn_norm"]
    assert list(theirs)[-2:] == ["final_norm", "logits"]
