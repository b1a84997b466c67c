"""The torch runtime agrees with transformers on small random models, whatever their shape, and so do its gradients.

A failure names the first activation that differs: "layers.3.attn.out max|d| = 0.12".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle import activations, ours
from tests.oracle.test_tiny_llama import SHAPES, prompt, reference_model
from tests.tiny import VOCAB, write_tiny_hf

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    """Whole prompt and, for the engine's chunks, token by token through the pages."""
    tiny = write_tiny_hf(tmp_path / "model", seed=1, **shape)
    ids = prompt()
    theirs = activations.record(reference_model(tiny.path), ids)
    # LongRoPE's frequencies are fixed by the context we are loaded with; transformers takes the sequence at hand.
    with ours.torch_executor(tiny.path, context=96) as model:
        whole = ours.activations(model, ids)
        assert activations.first_divergence(whole, theirs, TOLERANCE) is None
        for step in (1, 7):
            stepwise = ours.logits(model, ids, step)
            np.testing.assert_allclose(stepwise, theirs["logits"], atol=TOLERANCE, err_msg=f"{step} tokens at a time")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_agrees_on_half_precision_files(tmp_path: Path, dtype: str) -> None:
    tiny = write_tiny_hf(tmp_path / "model", dtype=dtype, seed=2, layers=3)
    theirs = activations.record(reference_model(tiny.path), prompt(1))
    with ours.torch_executor(tiny.path) as model:
        assert activations.first_divergence(ours.activations(model, prompt(1)), theirs, TOLERANCE) is None


def test_bfloat16_is_as_far_from_float32_as_transformers_is(tmp_path: Path) -> None:
    """Both round after every operation, at places of their own: neither may be much worse than the other."""
    import torch

    tiny = write_tiny_hf(tmp_path / "model", dtype="BF16", seed=3, layers=4)
    reference, ids = reference_model(tiny.path), prompt(2)
    batch = torch.tensor([ids])
    with torch.inference_mode():
        exact = reference(batch).logits[0]
        theirs = reference.to(torch.bfloat16)(batch).logits[0]
    with ours.torch_executor(tiny.path, "bfloat16") as model:
        mine = torch.from_numpy(ours.logits(model, ids))

    def distance(logits: Any) -> float:
        return float((logits.float() - exact).square().mean().sqrt())

    assert 0 < distance(mine) < 1.5 * distance(theirs)


@pytest.mark.parametrize(
    "shape", [{"tied": False}, {"tied": True, "heads": 4, "kv_heads": 1}, {"architecture": "mistral", "window": 24}]
)
def test_gradients_agree_with_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    """Training will use the same model: a whole batch without a cache, and a loss over every position."""
    import torch
    import torch.nn.functional as F

    from herder.model.build import build
    from herder.weights.source import open_model

    tiny = write_tiny_hf(tmp_path / "model", seed=4, **shape)
    batch = torch.tensor([prompt(5, 40), prompt(6, 40)])
    theirs = reference_model(tiny.path)
    with open_model(tiny.path) as files:
        mine = build(files, dtype=torch.float32, device=torch.device("cpu"))
    for model, logits in ((theirs, theirs(batch).logits), (mine, mine(batch))):
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), batch[:, 1:].reshape(-1)).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name: parameter.grad for name, parameter in mine.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert gradient is not None and found[name] is not None and float(gradient.abs().max()) > 0
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_the_first_divergence_is_named(tmp_path: Path) -> None:
    """A model with one damaged matrix diverges first where that matrix is used."""
    import torch

    tiny = write_tiny_hf(tmp_path / "model", seed=5, layers=3)
    model = reference_model(tiny.path)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[5] += 0.5
    theirs = activations.record(model, prompt())
    with ours.torch_executor(tiny.path) as executor:
        report = activations.first_divergence(ours.activations(executor, prompt()), theirs, TOLERANCE)
    assert report is not None
    assert report.startswith("layers.1.ffn.out max|d| = ")
    assert "column 5" in report
