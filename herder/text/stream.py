"""Tokens as they come -> text that is safe to show.

Never half a UTF-8 character, never a part of a stop string; and what was shown, joined, is exactly what decoding all
the tokens at once gives, up to the first stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from herder.core.errors import UsageError
from herder.text.tokenizer import Tokenizer


class TextStream:
    """Turns one sequence's tokens into text.

    stop: strings that end the text; the earliest match counts, and of those that begin there the one that is complete
    first. start: the tokens begin a text of their own (an answer); False when they continue one (see
    Tokenizer.decode). skip_special: leave control tokens out.
    stopped: the stop string that ended the text, or None. Once it is set, further tokens add nothing.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), start: bool = True, skip_special: bool = True
    ) -> None:
        if "" in stop:
            raise UsageError("a stop string is empty: it would end every answer at once")
        self.stopped: str | None = None
        self._stops = tuple(dict.fromkeys(stop))
        self._piece = tokenizer.pieces(skip_special=skip_special, start=start)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, but possibly the beginning of a stop string
        self._finished = False

    def push(self, token: int) -> str:
        """The text that has become certain with this token; often empty."""
        if self.stopped is not None:
            return ""
        assert not self._finished, "push after finish"
        return self._release(self._decoder.decode(self._piece(token)))

    def extend(self, tokens: Iterable[int]) -> str:
        return "".join([self.push(token) for token in tokens])

    def finish(self) -> str:
        """The rest, when no more tokens come: bytes of an unfinished character become U+FFFD. Call it once."""
        assert not self._finished, "finish twice"
        self._finished = True
        text = "" if self.stopped is not None else self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _release(self, new: str) -> str:
        if not self._stops:
            return new
        text = self._held + new
        ends = [(at, at + len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            # The match that was complete first: it stops the text whatever comes after.
            end = min(end for _, end, _ in ends)
            at, _, self.stopped = min(match for match in ends if match[1] == end)
            self._held = ""  # what follows a stop string is never shown
            return text[:at]
        hold = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
