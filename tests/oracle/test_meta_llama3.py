"""Meta's own Llama 3, run on the weights of a .pth that torch.save wrote, agrees with the same file read by us.

Its rotation pairs neighbouring rows and ours halves of a head: equal logits prove the permutation at load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.config import Rope
from herder.weights.source import open_model
from tests.oracle import ours
from tests.oracle.meta_modules import one_rank, randomize

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
LENGTH = 70  # three KV pages
VOCAB = 96

SHAPES: dict[str, dict[str, Any]] = {
    "Llama 2": {"n_heads": 4, "rope_theta": 10000.0, "norm_eps": 1e-6},
    "Llama 3": {"n_heads": 8, "n_kv_heads": 2, "rope_theta": 500000.0, "ffn_dim_multiplier": 1.3},
    "Llama 3.1": {"n_heads": 4, "n_kv_heads": 1, "rope_theta": 500000.0, "use_scaled_rope": True},
}


@pytest.mark.parametrize("case", SHAPES)
def test_logits_are_those_of_metas_module(tmp_path: Path, case: str) -> None:
    import torch
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    params = {"dim": 64, "n_layers": 3, "vocab_size": VOCAB, "multiple_of": 32, "norm_eps": 1e-5, **SHAPES[case]}
    directory = tmp_path / "model"
    directory.mkdir()
    ids = [int(i) for i in np.random.default_rng(1).integers(0, VOCAB, LENGTH)]
    with one_rank(tmp_path):
        theirs = Transformer(ModelArgs(**params, max_batch_size=1, max_seq_len=LENGTH))
        randomize(theirs, seed=1)
        state = theirs.state_dict()
        torch.save(state, directory / "consolidated.00.pth")
        expected = theirs(torch.tensor([ids]), 0)[0].numpy()
    (directory / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    with open_model(directory) as files:
        assert files.kind == "meta"
        assert files.config.rope.theta == params["rope_theta"]
        assert files.config.vocab == VOCAB
        assert all(tensor.make is None for tensor in files.tensors)
        if "use_scaled_rope" in params:
            assert files.config.rope == Rope(5e5, "llama3", 8.0, 8192)
    with ours.executor(directory, "float32") as native:
        np.testing.assert_allclose(ours.logits(native, ids), expected, rtol=0, atol=TOLERANCE)


def test_scaled_frequencies_are_metas_where_the_scaling_acts() -> None:
    """Over every wavelength: a head of 128 and theta 5e5, as in the released models."""
    import torch
    from llama_models.llama3.model import apply_scaling

    from herder.weights.config_meta import config_from_meta
    from herder.weights.rope import inv_freq

    params = {"dim": 512, "n_layers": 1, "n_heads": 4, "norm_eps": 1e-5, "rope_theta": 5e5, "use_scaled_rope": True}
    config = config_from_meta("params.json", params, vocab=8, tied=False)
    plain = 1.0 / (5e5 ** (torch.arange(0, 128, 2).float() / 128))
    frequencies, factor = inv_freq(config, config.context)
    assert factor == 1.0
    np.testing.assert_allclose(np.array(frequencies), apply_scaling(plain).numpy(), rtol=2e-6)
