"""Quantized checkpoints of every method end to end: our logits are transformers' on the weights they stand for.

transformers saves a small random model; its linear layers are quantized by tests/weights/quantized/schemes.py, which
also says what the stored numbers mean; the one directory is given to our loader, the other to transformers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.oracle import checkpoints, ours
from tests.tiny import write_tiny_hf
from tests.weights.quantized.checkpoint import bf16_values, write
from tests.weights.quantized.schemes import SCHEMES, Scheme, plain

pytestmark = pytest.mark.oracle

_LINEAR = re.compile(r".*\.layers\.\d+\.(?!.*(norm|router|block_sparse_moe\.gate\b)).*(_proj|\.w[123])(\.weight)?")


def quantize(source: Path, scheme: Scheme, layers: re.Pattern[str] = _LINEAR) -> tuple[Path, Path]:
    """The checkpoint in `source` (float32) quantized, and the same with the weights that this stands for."""
    quantized, dequantized = source.with_name("quantized"), source.with_name("dequantized")
    for target in (quantized, dequantized):
        shutil.copytree(source, target)
    stored: dict[str, Any] = {}
    meant: dict[str, Any] = {}
    for name, values in load_file(source / "model.safetensors").items():
        if layers.fullmatch(name):
            tensors, meant[name] = scheme.quantize(name.removesuffix(".weight"), values)
            stored |= tensors
        else:
            stored[name], meant[name] = plain(values), bf16_values(values).reshape(values.shape)
    write(quantized / "model.safetensors", stored)
    save_file(
        {name: np.ascontiguousarray(v) for name, v in meant.items()},
        dequantized / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization_config": scheme.config, "dtype": "bfloat16"}
    (quantized / "config.json").write_text(json.dumps(config))
    return quantized, dequantized


def assert_same_logits(quantized: Path, dequantized: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 250, 40)]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    for executor in (ours.executor, ours.torch_executor):
        with executor(quantized, "float32", context=96) as model:
            np.testing.assert_allclose(ours.logits(model, ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SCHEMES)
def test_llama(tmp_path: Path, name: str) -> None:
    write_tiny_hf(tmp_path / "float", tied=False)
    assert_same_logits(*quantize(tmp_path / "float", SCHEMES[name]))


@pytest.mark.parametrize(("make", "name"), [
    (checkpoints.mixtral, "compressed-tensors packed"), (checkpoints.mixtral, "gptq"), (checkpoints.mixtral, "fp8"),
    (checkpoints.llama4_text, "fbgemm_fp8"),
])  # fmt: skip
def test_experts(tmp_path: Path, make: Callable[..., Any], name: str) -> None:
    make(tmp_path / "float")
    assert_same_logits(*quantize(tmp_path / "float", SCHEMES[name]))
