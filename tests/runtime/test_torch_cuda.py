"""The torch executor on a CUDA device, against itself on the CPU. Run with `pytest -m cuda` where there is one."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herder.core.batch import Batch, Chunk, Want
from herder.core.errors import OutOfMemory
from herder.runtime.torch import TorchExecutor, load_model
from herder.weights.source import open_model
from tests.tiny import write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.oracle,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run pytest -m cuda where there is one"),
]

MODELS: dict[str, Callable[[Path], Any]] = {
    "grouped heads": lambda path: write_tiny_hf(path, layers=3),
    "quantized": lambda path: write_tiny_gguf(path, formats="Q8_0"),
    "sliding window": lambda path: write_tiny_hf(path, architecture="mistral", window=24),
    "mixtral": lambda path: write_tiny_hf(path, **mixtral()),
    "llama 4": lambda path: write_tiny_hf(path, **llama4()),
}


def load(path: Path, **settings: Any) -> TorchExecutor:
    with open_model(path) as files:
        return load_model(files, **{"context": 256, "kv_pages": 16, "dtype": "float32", "device": "cuda", **settings})


def chunk(seq: int, start: int, count: int, first_page: int) -> Chunk:
    ids = array("i", [(11 * seq + 5 * i) % 250 for i in range(start, start + count)])
    pages = array("i", range(first_page, first_page + 3))
    return Chunk(seq, ids, start, pages, min(count, 2), Want.LOGITS)


def results(executor: TorchExecutor) -> list[np.ndarray]:
    """Prompts, then a batch of continuations of several lengths, a decoding pair among them."""
    prompts = (chunk(0, 0, 50, 0), chunk(1, 0, 33, 3), chunk(2, 0, 20, 6))
    rest = (chunk(0, 50, 1, 0), chunk(1, 33, 1, 3), chunk(2, 20, 30, 6), chunk(3, 0, 40, 9))
    outputs = [o for batch in (prompts, rest) for o in executor.result(executor.launch(Batch(batch)))]
    assert [o.error for o in outputs] == [None] * 7
    return [np.frombuffer(o.logits, np.float32) for o in outputs]


@pytest.mark.parametrize("name", MODELS)
def test_float32_agrees_with_the_cpu(tmp_path: Path, name: str) -> None:
    MODELS[name](tmp_path / "model.gguf")
    mine, theirs = load(tmp_path / "model.gguf"), load(tmp_path / "model.gguf", device="cpu")
    for got, expected in zip(results(mine), results(theirs), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-3)
    assert mine.limits.batch_tokens > theirs.limits.batch_tokens


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near_float32(tmp_path: Path, name: str) -> None:
    MODELS[name](tmp_path / "model.gguf")
    exact = np.concatenate(results(load(tmp_path / "model.gguf")))
    near = np.concatenate(results(load(tmp_path / "model.gguf", dtype="auto")))
    # The median, since a router may choose another expert for a token or two.
    assert 0 < np.median(np.abs(near - exact)) < 0.03 * exact.std()


def test_exhausted_memory_is_one_line_and_the_next_model_loads(tmp_path: Path) -> None:
    path = write_tiny_hf(tmp_path / "model").path
    with pytest.raises(OutOfMemory, match="out of memory") as caught:
        load(path, kv_pages=1 << 40)
    assert "\n" not in str(caught.value)
    results(load(path))
