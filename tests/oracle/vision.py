"""Both sides of a comparison of vision models: transformers' activations by our names, and our torch executor."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Want
from herder.core.request import Image
from tests.oracle.activations import Floats


@contextmanager
def executor(path: Path, context: int = 256) -> Iterator[Any]:
    """Our TorchExecutor of the files at `path`, in float32 on the CPU, with room for two sequences."""
    from herder.runtime.torch import load_model
    from herder.weights.source import open_model

    with open_model(path) as files:
        loaded = load_model(
            files, context=context, kv_pages=2 * context // PAGE_TOKENS, dtype="float32", device="cpu", threads=1
        )
    try:
        yield loaded
    finally:
        loaded.close()


def chunk(ids: Sequence[int], start: int, end: int, images: Sequence[Image], seq: int = 0, context: int = 256) -> Chunk:
    """Positions start .. end - 1 of a sequence, its logits wanted. Sequence 1 has the second half of the pages."""
    first = seq * context // PAGE_TOKENS
    pages = array("i", range(first, first + -(-end // PAGE_TOKENS)))
    begun = tuple(image for image in images if image.positions[0] < end)
    tokens = array("i", ids[start:end])
    return Chunk(seq, tokens, start, pages, outputs=end - start, want=Want.LOGITS, images=begun, prompt=True)


def run(model: Any, *chunks: Chunk) -> list[Floats]:
    """The logits of each chunk: float32 (tokens, vocab)."""
    outputs = model.result(model.launch(Batch(chunks)))
    assert not any(output.error for output in outputs)
    return [
        np.frombuffer(o.logits, np.float32).reshape(len(c.tokens), -1) for o, c in zip(outputs, chunks, strict=True)
    ]


def logits(model: Any, ids: Sequence[int], images: Sequence[Image], step: int | None = None) -> Floats:
    """float32 (len(ids), vocab), computed `step` tokens at a time; None: all at once."""
    step = step or len(ids)
    parts = [run(model, chunk(ids, at, min(at + step, len(ids)), images))[0] for at in range(0, len(ids), step)]
    return np.concatenate(parts)


def ours(llama: Any, image: Image) -> dict[str, Floats]:
    """The activations of our encoder for one image, as (rows, width)."""
    import torch

    from herder.model.vision.encoder import tapped

    found: dict[str, Floats] = {}
    with torch.inference_mode(), tapped(llama, lambda name, value: found.__setitem__(name, _rows(value))):
        llama.see(torch.from_numpy(image.pixels), image.grid)
    return found


@contextmanager
def recorded(modules: Mapping[str, Any]) -> Iterator[dict[str, Floats]]:
    """The outputs of transformers' modules by name, in the order of the forward pass, as (rows, width)."""
    found: dict[str, Floats] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            output = getattr(output, "last_hidden_state", output)
            found[name] = _rows(output[0] if isinstance(output, tuple) else output)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _rows(value: Any) -> Floats:
    rows: Floats = value.detach().float().numpy()
    return rows.reshape(-1, rows.shape[-1]).copy()
