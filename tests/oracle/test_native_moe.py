"""The native core in float32 agrees with transformers on Mixtral and on the text models of Llama 4.

The same models as the torch runtime is held to, whole prompts and token by token. A failure names the first activation
that differs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracle import activations, activations_moe, ours
from tests.oracle.test_torch_moe import MODELS, TOLERANCE, prompt

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_transformers(tmp_path: Path, name: str) -> None:
    make, changes = MODELS[name]
    ids = prompt(1)
    theirs = activations_moe.record(make(tmp_path, seed=1, **changes), ids)
    with ours.executor(tmp_path, "float32", context=64) as model:
        whole = ours.activations(model, ids)
        assert activations.first_divergence(whole, theirs, TOLERANCE) is None
        assert set(whole) == set(theirs)
        for step in (1, 7):
            stepwise = ours.logits(model, ids, step)
            np.testing.assert_array_equal(stepwise, whole["logits"], f"{step} tokens at a time")
