"""How well a model predicts a text.

The text's tokens (BOS first where the model wants one, and only there) are cut into windows of `context` tokens that do
not overlap; each window is scored by itself, its first token, which nothing precedes, not at all. Perplexity is
exp(-mean log-probability) over all scored tokens, as in Hugging Face's "Perplexity of fixed-length models" with a
stride of the whole window. A last window of one token has nothing to score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from herder.core.errors import UsageError

if TYPE_CHECKING:
    from herder.core.request import TokenLogprob

Score = Callable[[Sequence[int]], "list[TokenLogprob]"]
"""Log-probabilities of every token but the first after those before it: LLM.score."""


class Perplexity(NamedTuple):
    """tokens: how many were scored. nll: the sum of their negative log-probabilities, in nats."""

    tokens: int
    nll: float
    windows: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)


def windows(tokens: Sequence[int], context: int) -> Iterator[Sequence[int]]:
    """Windows that do not overlap; the last may be shorter, but not a single token."""
    for start in range(0, len(tokens), context):
        window = tokens[start : start + context]
        if len(window) > 1:
            yield window


def measure(score: Score, tokens: Sequence[int], context: int) -> Iterator[Perplexity]:
    """The result after each window; the last one is the whole text's.

    Raises UsageError for a text or a window of fewer than two tokens.
    """
    if context < 2:
        raise UsageError(
            f"context is {context}: a window needs at least 2 tokens, one to predict from and one to score"
        )
    if len(tokens) < 2:
        raise UsageError(f"the text has {len(tokens)} tokens: at least 2 are needed")
    scored, nll = 0, 0.0
    for count, window in enumerate(windows(tokens, context), 1):
        values = [one.logprob for one in score(window)]
        assert len(values) == len(window) - 1
        scored += len(values)
        nll -= math.fsum(values)
        yield Perplexity(scored, nll, count)
