"""Speculation by prompt lookup: the continuation of the last place where the text said the same thing is a good guess.

Answers quote their prompt (code edits, summaries, extraction) and themselves. A drafted token is computed together with
the one before it; it is kept only if the sampler, at that position and with that position's random number, chooses the
very same token. So speculation changes the speed and never the text.
"""

from __future__ import annotations

from array import array

NGRAM = 3  # tokens that must agree before a continuation is proposed


class Speculator:
    """Proposes continuations for one growing sequence.

    The proposal shrinks after a miss and grows again after a full hit, so that text without repetition costs little.
    """

    __slots__ = ("_indexed", "_last", "_length", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._length = most
        self._indexed = 0  # n-grams that start before this position are in _last
        self._last: dict[tuple[int, ...], int] = {}  # n-gram -> position after its latest occurrence

    def draft(self, tokens: array[int], most: int) -> array[int] | None:
        """At most `most` tokens that might follow `tokens`; None without a guess."""
        end = len(tokens)
        last = self._last
        # The n-gram at the very end is what is looked up, so it must not yet be its own latest occurrence.
        for start in range(self._indexed, end - NGRAM):
            last[tuple(tokens[start : start + NGRAM])] = start + NGRAM
        self._indexed = max(self._indexed, end - NGRAM)
        most = min(most, self._length)
        if most <= 0 or end <= NGRAM:
            return None
        found = last.get(tuple(tokens[end - NGRAM :]))
        return None if found is None else tokens[found : found + most]

    def verified(self, drafted: int, accepted: int) -> None:
        """How the last proposal fared."""
        if accepted == drafted:
            self._length = min(self.most, self._length + 1)
        else:
            self._length = accepted + 1


def agreement(drafts: array[int], sampled: tuple[int, ...]) -> int:
    """How many drafts were right: the length of the longest prefix that the sampler chose too."""
    for index, draft in enumerate(drafts):
        if sampled[index] != draft:
            return index
    return len(drafts)
