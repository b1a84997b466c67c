"""Models with experts, from Hugging Face directories and GGUF files: the tensors that were written are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.weights.names import Role
from herder.weights.source import open_model
from tests.tiny import write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral
from tests.weights.test_source_gguf import assert_matches, canonical_rows

HF: dict[str, dict[str, Any]] = {
    "mixtral": mixtral(),
    "mixtral BF16, window, shards": mixtral(window=16, dtype="BF16", shards=3),
    "mixtral of two experts": mixtral(experts=2, active=1, layers=1),
    "llama4": llama4(),
    "llama4 BF16, every layer, two active": llama4(step=1, active=2, dtype="BF16", shards=2),
    "llama4 like Maverick": llama4(qk_norm=False, attention_bias=True),
    "llama4 without experts": llama4(experts=0, chunk=None, tied=True),
}
GGUF: dict[str, dict[str, Any]] = {
    "mixtral": mixtral(),
    "mixtral, experts in tensors of their own": mixtral(stacked=False),
    "mixtral Q4_0": mixtral(formats="Q4_0"),
    "mixtral, K-quants": mixtral(formats={"": "Q4_K", "gate_proj": "Q6_K", "router": "F16"}, dim=256, ffn_dim=256),
    "llama4": llama4(chunk=8192, floor=8192),
    "llama4 Q8_0, every layer, two active": llama4(chunk=8192, floor=8192, step=1, active=2, formats="Q8_0"),
    "llama4 without chunks": llama4(chunk=None),
    "llama4 without experts": llama4(experts=0, chunk=8192, floor=8192, attention_bias=True),
}  # fmt: skip


@pytest.mark.parametrize("case", HF)
def test_hugging_face(tmp_path: Path, case: str) -> None:
    tiny = write_tiny_hf(tmp_path / "model", **HF[case])
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)


@pytest.mark.parametrize("case", GGUF)
def test_gguf(tmp_path: Path, case: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "m.gguf", **GGUF[case])
    with open_model(tiny.path) as model:
        assert_matches(model, tiny)


@pytest.mark.parametrize("shape", [mixtral(), llama4(chunk=8192, floor=8192)], ids=["mixtral", "llama4"])
def test_both_kinds_of_file_give_the_same_tensors(tmp_path: Path, shape: dict[str, Any]) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", seed=5, **shape)
    write_tiny_hf(tmp_path / "hf", seed=5, **shape)
    with open_model(tmp_path / "m.gguf") as one, open_model(tmp_path / "hf") as other:
        theirs = {t.name: canonical_rows(t) for t in other.tensors}
        assert {t.name for t in one.tensors} == set(theirs)
        for tensor in one.tensors:
            np.testing.assert_array_equal(canonical_rows(tensor), theirs[tensor.name], err_msg=tensor.name)
        assert one.config.experts == other.config.experts and one.config.plan == other.config.plan
        assert one.config.temperature == other.config.temperature


def test_experts_are_not_copied(tmp_path: Path) -> None:
    """Stacked or transposed, every expert's tensor points into the mapping, and reads nothing outside it."""
    for tiny in (write_tiny_hf(tmp_path / "hf", **llama4()), write_tiny_gguf(tmp_path / "m.gguf", **mixtral())):
        with open_model(tiny.path) as model:
            experts = [t for t in model.tensors if Role.EXPERT_GATE <= t.role <= Role.EXPERT_DOWN]
            assert {t.expert for t in experts} == {0, 1, 2, 3}
            for tensor in experts:
                assert tensor.make is None and tensor.file is not None and tensor.row_map is None
                assert tensor.address == tensor.file.address(tensor.offset)
            assert all(t.turned == {Role.EXPERT_DOWN: 64}.get(t.role, 128) for t in experts) or model.kind == "gguf"
