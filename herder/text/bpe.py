"""Byte-pair encoding, from plain tables to a function `text -> ids`.

The work is done by Hugging Face `tokenizers`. No "added tokens" are registered with it, so a special token's spelling
inside text is never more than text; control tokens are the business of `Tokenizer`. Building its tables takes time
(about 75 ms of processor time for SmolLM2's 49,152 tokens), which a first short prompt should not wait for: see
`ByteLevel`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from herder.core.errors import ModelFileError
from herder.text.splits import Split, ascii_pattern

Encode = Callable[[str], list[int]]
Merge = tuple[str, str]

SHORT_TEXT = 4096  # characters
SHORT_WORD = 64  # characters; plain merging takes quadratic time


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in a byte-level vocabulary (OpenAI's GPT-2 encoder).

    Printable Latin-1 characters stand for themselves; the other bytes take U+0100, U+0101, ... in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


@functools.cache
def _byte_of_char() -> dict[str, int]:
    return {char: byte for byte, char in enumerate(byte_alphabet())}


def bytes_of(spelling: bytes) -> bytes:
    """The bytes a byte-level token stands for; one outside the byte alphabet stands for its own text."""
    table = _byte_of_char()
    try:
        return bytes([table[char] for char in spelling.decode()])
    except (KeyError, UnicodeDecodeError):
        return spelling


def spell(raw: bytes) -> str:
    """`raw` in the byte alphabet: the inverse of `bytes_of`."""
    alphabet = byte_alphabet()
    return "".join([alphabet[byte] for byte in raw])


def merges_by_rank(tokens: Iterable[str], known: Mapping[str, Any]) -> list[Merge]:
    """Merges of a vocabulary that ranks its tokens instead (tiktoken ranks, SentencePiece scores).

    tokens: best rank first. Such an encoder joins any two neighbours whose concatenation is a token, best rank first;
    so every split of a token into two known halves is a merge of that token's rank.
    """
    return [
        (token[:cut], token[cut:])
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]


def fitting(merges: Sequence[Merge], words: Mapping[str, int], apart: Collection[str]) -> list[Merge]:
    """The merges that make and use only `words`.

    Those that make or use a token of `apart` (a control token, say) are dropped: text must not become one. Raises
    ModelFileError for a merge that names neither. (`tokenizers` itself panics on some such tables.)
    """
    kept = [(left, right) for left, right in merges if left in words and right in words and left + right in words]
    if len(kept) != len(merges):
        for left, right in set(merges).difference(kept):
            if not all(token in words or token in apart for token in (left, right, left + right)):
                raise ModelFileError(f"the merge of {left!r} and {right!r} names a token that the vocabulary lacks")
    return kept


def build(words: dict[str, int], merges: Sequence[Merge], **options: Any) -> Any:
    """A `tokenizers` BPE model over tables that fit together. Raises ModelFileError when the library refuses them."""
    from tokenizers.models import BPE

    try:
        return BPE(words, merges, **options)
    except Exception as error:  # it raises plain Exception
        said = " ".join(str(error).split())[:200]  # it may say several lines: of spellings that are no text, say
        raise ModelFileError(f"the tokenizer's vocabulary and merges do not fit together: {said}") from error


def encoder(model: Any, *, pre_tokenizer: Any = None, normalizer: Any = None) -> Encode:
    from tokenizers import Tokenizer

    core = Tokenizer(model)
    if pre_tokenizer is not None:
        core.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        core.normalizer = normalizer

    def encode(text: str) -> list[int]:
        if len(text) > SHORT_TEXT:  # only batches give the interpreter's lock back, and this may take seconds
            ids: list[int] = core.encode_batch([text], add_special_tokens=False)[0].ids
            return ids
        ids = core.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def byte_level(model: Any, patterns: Sequence[str]) -> Encode:
    """A model over the byte alphabet: text is cut by each pattern in turn, then each word's UTF-8 bytes are merged.

    A byte that the vocabulary lacks yields nothing, as in Hugging Face and llama.cpp (SmolLM2 lacks six control
    characters and a few lead bytes of unassigned planes).
    """
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return encoder(model, pre_tokenizer=pre_tokenizers.Sequence(steps))


class ByteLevel:
    """Encodes with byte-level BPE; short ASCII texts in plain Python until `tokenizers` has been needed once.

    split: how text is cut into words. symbols: the vocabulary's spelling of each ASCII character.
    ids: spelling -> id, of the tokens that text may become. rank: of joining two spellings, None when they do not join.
    full: builds the encoder over `tokenizers`, which must give the same ids.
    """

    def __init__(
        self,
        split: Split,
        symbols: Sequence[bytes],
        ids: Callable[[bytes], int | None],
        rank: Callable[[bytes, bytes], int | None],
        full: Callable[[], Encode],
    ) -> None:
        self._split = split
        self._symbols = symbols
        self._id = ids
        self._rank: Callable[[bytes, bytes], int | None] | None = rank
        self._full: Callable[[], Encode] | None = full
        self._encode: Encode | None = None
        self._words: dict[str, list[int]] = {}
        self._patterns: list[re.Pattern[str]] = []

    def __call__(self, text: str) -> list[int]:
        if self._encode is None:
            if len(text) <= SHORT_TEXT and text.isascii() and (ids := self._short(text)) is not None:
                return ids
            self.prepare()
            assert self._encode is not None
        return self._encode(text)

    def prepare(self) -> None:
        """Builds the full encoder now."""
        if self._full is not None:
            self._encode = self._full()
            self._full = self._rank = None
            self._words.clear()

    def _short(self, text: str) -> list[int] | None:
        """The ids, or None when a word is too long for plain merging or the tables have a hole."""
        if not self._patterns:
            self._patterns = [re.compile(ascii_pattern(p), re.ASCII) for p in self._split.patterns]
        words = [text]
        for pattern in self._patterns:
            words = [part for word in words for part in isolate(pattern, word)]
        ids: list[int] = []
        for word in words:
            found = self._words.get(word)
            if found is None:
                found = self._word(word)
                if found is None:
                    return None
                self._words[word] = found
            ids += found
        return ids

    def _word(self, word: str) -> list[int] | None:
        if len(word) > SHORT_WORD or self._rank is None:
            return None
        parts = [self._symbols[ord(char)] for char in word]
        if self._split.ignore_merges and (whole := self._id(b"".join(parts))) is not None:
            return [whole]
        parts = merged([part for part in parts if self._id(part) is not None], self._rank)
        ids = [token for part in parts if (token := self._id(part)) is not None]
        return ids if len(ids) == len(parts) else None


def merged(parts: list[bytes], rank: Callable[[bytes, bytes], int | None]) -> list[bytes]:
    """Joins the neighbours of best (lowest) rank, the leftmost first, until none join. Quadratic."""
    ranks = [rank(left, right) for left, right in itertools.pairwise(parts)]
    while True:
        best = min((r for r in ranks if r is not None), default=None)
        if best is None:
            return parts
        at = ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del ranks[at]
        if at > 0:
            ranks[at - 1] = rank(parts[at - 1], parts[at])
        if at < len(ranks):
            ranks[at] = rank(parts[at], parts[at + 1])


def isolate(pattern: re.Pattern[str], text: str) -> list[str]:
    """The matches of `pattern` and the gaps between them, in order; none is empty."""
    parts = []
    at = 0
    for match in pattern.finditer(text):
        if match.start() > at:
            parts.append(text[at : match.start()])
        if match[0]:
            parts.append(match[0])
        at = match.end()
    if at < len(text):
        parts.append(text[at:])
    return parts
