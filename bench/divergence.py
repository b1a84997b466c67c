"""How far one model's predictions are from another's: Kullback-Leibler divergence, in nats a token.

Runs inside the interpreter of every measured program, so NumPy is all it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Logits = np.ndarray[Any, np.dtype[np.float32]]  # (tokens, vocabulary)


def log_softmax(logits: Logits) -> Logits:
    shifted: Logits = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted


def divergence(reference: Logits, logits: Logits) -> float:
    """Sum over the tokens of KL(softmax(reference) || softmax(logits)). Raises ValueError for unequal shapes."""
    if reference.shape != logits.shape:
        raise ValueError(f"logits of shape {logits.shape} beside a reference of {reference.shape}")
    expected, actual = log_softmax(reference), log_softmax(logits)
    actual -= expected
    np.exp(expected, out=expected)
    return -float(np.einsum("ij,ij->", expected, actual, dtype=np.float64, casting="same_kind"))


def answer(logits: Logits, path: str, write: bool) -> dict[str, float]:
    """A worker's answer to "logits": with `write`, they become the reference at `path`; else they are compared."""
    if write:
        np.save(Path(path), logits)
        return {"tokens": len(logits), "kl": 0.0}
    return {"tokens": len(logits), "kl": divergence(np.load(path), logits)}
