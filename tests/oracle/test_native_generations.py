"""The native core on models that also see images, used without any: transformers' text-only logits.

Llama 3.2 Vision is then its self-attention layers, numbered without gaps, with an embedding that has more rows than the
vocabulary; Llama 4 is its language model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle import checkpoints, ours
from tests.oracle.test_torch_moe import TOLERANCE, prompt

pytestmark = pytest.mark.oracle

MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "llama 3.2 vision": (checkpoints.mllama, {}),
    "llama 3.2 vision, cross-attention first": (checkpoints.mllama, {"cross_attention_layers": [0, 2]}),
    "its text model": (checkpoints.mllama_text, {}),
    "llama 4": (checkpoints.llama4, {"use_qk_norm": True, "interleave_moe_layer_step": 1}),
    "llama guard 4": (
        checkpoints.llama4,
        {"moe_layers": [], "attention_chunk_size": 256, "no_rope_layers": [1] * 4, "attn_temperature_tuning": False},
    ),
}


def without_chunks(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["attention_chunk_size"] = None
    del config["text_config"]["layer_types"]
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_transformers(tmp_path: Path, name: str) -> None:
    import torch

    make, changes = MODELS[name]
    ids = prompt(3)
    model = make(tmp_path, seed=2, **changes)
    if name == "llama guard 4":  # its config.json says null, for which transformers makes no mask: the same here as 256
        without_chunks(tmp_path / "config.json")
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    with ours.executor(tmp_path, "float32", context=64) as native:
        whole = ours.logits(native, ids)
        np.testing.assert_allclose(whole, theirs, atol=TOLERANCE)
        np.testing.assert_array_equal(ours.logits(native, ids, 1), whole, "token by token")
