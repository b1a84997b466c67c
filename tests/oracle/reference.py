"""The float32 reference: transformers' LlamaForCausalLM, and the numbers taken from it.

From a GGUF file, transformers reads the shape, dequantizes with the `gguf` package and undoes the row order of q and k
itself: none of it is our code. Everything runs on the CPU in float32 with the eager attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def from_gguf(path: Path) -> Any:
    """The model in `path` with its weights expanded to float32."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    return model.eval()


def logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    """float32 (len(ids), vocabulary)."""
    import torch

    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def window_nll(model: Any, ids: Sequence[int], context: int) -> list[float]:
    """Sum of -log p over each window of `context` tokens; windows do not overlap, the first token of each is unscored.

    A last window shorter than the others counts; one with a single token has nothing to score and is left out.
    """
    sums = []
    for start in range(0, len(ids), context):
        window = ids[start : start + context]
        if len(window) < 2:
            break
        x = logits(model, window[:-1]).astype(np.float64)
        x -= x.max(axis=-1, keepdims=True)
        logprobs = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
        sums.append(-float(logprobs[np.arange(len(window) - 1), list(window[1:])].sum()))
    return sums


def perplexity(nll: Sequence[float], tokens: int) -> float:
    return math.exp(sum(nll) / tokens)


@dataclass(frozen=True)
class Greedy:
    """A greedy answer. margins[i]: by how much the logit of tokens[i] exceeds the next best one."""

    tokens: list[int]
    margins: list[float]


def greedy(model: Any, prompt: Sequence[int], count: int) -> Greedy:
    """`count` tokens, without stopping at an end-of-turn token; the lowest id wins a tie."""
    import torch

    tokens: list[int] = []
    margins: list[float] = []
    past, step = None, torch.tensor([list(prompt)])
    with torch.inference_mode():
        for _ in range(count):
            out = model(step, past_key_values=past, use_cache=True)
            past, row = out.past_key_values, out.logits[0, -1].numpy()
            best = int(row.argmax())
            margins.append(float(row[best] - np.partition(row, -2)[-2]))
            tokens.append(best)
            step = torch.tensor([[best]])
    return Greedy(tokens, margins)
