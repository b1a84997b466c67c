"""Our side of a comparison: an executor on a model's files, its logits and its activations as NumPy arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Want
from herder.runtime.native import Compute, NativeExecutor, load_model
from herder.weights.source import open_model
from tests.oracle.activations import Floats

if TYPE_CHECKING:
    from herder.runtime.torch import Dtype, TorchExecutor


@contextmanager
def executor(path: Path, compute: Compute, context: int = 256, isa: str | None = None) -> Iterator[NativeExecutor]:
    """The model at `path` with room for one sequence of `context` tokens."""
    with open_model(path) as files:
        loaded = load_model(
            files, context=context, kv_pages=-(-context // PAGE_TOKENS), compute=compute, threads=2, isa=isa
        )
    try:
        yield loaded
    finally:
        loaded.close()


@contextmanager
def torch_executor(
    path: Path, dtype: Dtype = "float32", context: int = 256, **settings: Any
) -> Iterator[TorchExecutor]:
    """The same in PyTorch, on the CPU."""
    from herder.runtime import torch

    with open_model(path) as files:
        pages = -(-context // PAGE_TOKENS)
        loaded = torch.load_model(files, context=context, kv_pages=pages, dtype=dtype, device="cpu", **settings)
    try:
        yield loaded
    finally:
        loaded.close()


def logits(model: NativeExecutor | TorchExecutor, ids: Sequence[int], chunk: int | None = None) -> Floats:
    """float32 (len(ids), vocabulary), computed `chunk` tokens at a time; None: as many as a batch holds."""
    step = chunk or model.limits.batch_tokens
    pages = array("i", range(-(-len(ids) // PAGE_TOKENS)))
    rows = []
    for start in range(0, len(ids), step):
        tokens = array("i", ids[start : start + step])
        held = pages[: -(-(start + len(tokens)) // PAGE_TOKENS)]
        batch = Batch((Chunk(0, tokens, start, held, outputs=len(tokens), want=Want.LOGITS, prompt=True),))
        [output] = model.result(model.launch(batch))
        rows.append(np.frombuffer(output.logits, np.float32).reshape(len(tokens), -1))
    return np.concatenate(rows)


def activations(model: NativeExecutor | TorchExecutor, ids: Sequence[int]) -> dict[str, Floats]:
    """Every activation of one batch over `ids`, by name. The last ones come in pieces, which are put together."""
    pieces: dict[str, list[Floats]] = {}

    def keep(name: str, rows: int, cols: int, values: array[float]) -> None:
        pieces.setdefault(name, []).append(np.frombuffer(values, np.float32).reshape(rows, cols))

    model.tap(keep)
    try:
        logits(model, ids)
    finally:
        model.tap(None)
    return {name: np.concatenate(parts) for name, parts in pieces.items()}
