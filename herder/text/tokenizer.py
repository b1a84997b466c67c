"""Text <-> token ids. One class for every vocabulary; the loaders beside this file build it.

Text is data: a special token's spelling inside text is split and encoded like any other text, as Meta's reference
does, so that a user cannot forge the end of a turn. Control tokens come from ids, or from `encode(special=True)` on
strings that the program itself wrote. Tokens of the kind `USER_DEFINED` are ordinary words that the vocabulary's author
wants whole; they match in any text.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from herder.core.errors import UsageError
from herder.text.bpe import Encode, bytes_of, spell

SPACE = "\u2581"  # stands for a space in SentencePiece vocabularies
_SPACE = SPACE.encode()
_BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")

# Control tokens that end a turn, for files that name only one of several. Spellings of the models we know.
TURN_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<|eom|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "</s>",
    "\u2581<EOT>",
)

# Control tokens that files call words, or pieces that text may merge into: Code Llama's, whose "\u2581<PRE>" its own
# tokenizer makes of a user's " <PRE>"; and DeepSeek's, with bars of double width. Here they come from ids only.
_CODE_LLAMA = ("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>", "<step>")
_BARS = re.compile(rb"<(?:\||\xef\xbd\x9c)[^<>\s]+(?:\||\xef\xbd\x9c)>")


class Spelling(enum.Enum):
    """How a vocabulary writes its tokens."""

    RAW = "raw"  # the bytes themselves
    ALPHABET = "alphabet"  # a printable character a byte (bpe.byte_alphabet), in UTF-8
    PIECES = "pieces"  # SentencePiece: UTF-8 with U+2581 for a space; `<0xNN>` for a byte


class Kind(enum.IntEnum):
    """What a token is (GGUF `tokenizer.ggml.token_type`, which are SentencePiece's types)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Prefix(enum.Enum):
    """Which texts get a space of their own at the beginning, in a SentencePiece vocabulary (add_dummy_prefix)."""

    NEVER = "never"
    TEXT = "text"  # each text that is encoded (SentencePiece)
    PIECE = "piece"  # each stretch of text between whole tokens (llama.cpp; Hugging Face's Prepend)
    METASPACE = "metaspace"  # like PIECE, but not before a space (Hugging Face's Metaspace, "always")
    METASPACE_FIRST = "first"  # only at the beginning of the sequence, and not before a space (Metaspace, "first")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What each id means. Spellings are the file's bytes: making 49,152 strings would take a start-up 13 ms.

    tokens: id -> spelling; empty for an id that has no token. ids: the inverse.
    kinds: of the ids that are not NORMAL. spelling: of the NORMAL ones; the others but BYTE are spelled as text.
    """

    tokens: Sequence[bytes]
    ids: Mapping[bytes, int]
    kinds: Mapping[int, Kind]
    spelling: Spelling

    def of(self, *kinds: Kind) -> dict[str, int]:
        """spelling -> id of the tokens of these kinds."""
        return {text_of(self.tokens[i]): i for i, kind in self.kinds.items() if kind in kinds and self.tokens[i]}

    def ordinary(self) -> dict[str, int]:
        """spelling -> id of the tokens that text is merged into: NORMAL ones."""
        spellings = [token.decode("utf-8", "surrogateescape") for token in self.tokens]
        return {token: i for i, token in enumerate(spellings) if token and i not in self.kinds}


def disguised(ids: Mapping[bytes, int], kinds: Mapping[int, Kind], tokens: Sequence[bytes]) -> dict[int, Kind]:
    """The tokens that are control tokens although their file says otherwise, as kinds to be added to its own."""
    found = [ids[name] for name in map(str.encode, _CODE_LLAMA) if name in ids]
    found += [i for i, kind in kinds.items() if kind == Kind.USER_DEFINED and _BARS.fullmatch(tokens[i])]
    return dict.fromkeys(found, Kind.CONTROL)


def text_of(spelling: bytes) -> str:
    """A spelling as text; bytes that are not UTF-8 (a damaged file's) become lone surrogates."""
    return spelling.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Special:
    """The ids with a role, as far as the file says.

    stops: every id that ends a turn. add_bos, add_eos: whether the model wants them around a plain text.
    """

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    pad: int | None = None
    stops: frozenset[int] = frozenset()
    add_bos: bool = False
    add_eos: bool = False


class Tokenizer:
    """Encodes and decodes with one vocabulary.

    name: the kind, as `bpe/llama-bpe` or `spm`. vocab_size: ids run from 0 to vocab_size - 1 (some may be unused).
    prefix: which texts begin with a space of their own; decoding takes the first one away.
    chunks: cuts a long text into parts that are encoded one by one.
    version: the one that Mistral gives its files (`v3`), as far as they say; each has a chat format of its own.
    exact: encoding rewrites nothing of a text first, and makes no single unknown token of several characters.
    """

    def __init__(
        self,
        name: str,
        vocabulary: Vocabulary,
        encode: Encode,
        special: Special,
        *,
        prefix: Prefix = Prefix.NEVER,
        chunks: Callable[[str], Iterator[str]] | None = None,
        version: str | None = None,
        exact: bool = True,
    ) -> None:
        self.name = name
        self.version = version
        self.vocab_size = len(vocabulary.tokens)
        self.special = special
        self.prefix = prefix
        self.exact = exact
        self._vocabulary = vocabulary
        self._encode = encode
        self._chunks = chunks
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        self._control = frozenset(i for i, k in vocabulary.kinds.items() if k in (Kind.CONTROL, Kind.UNKNOWN))
        words = vocabulary.of(Kind.USER_DEFINED)
        if vocabulary.spelling is Spelling.PIECES:
            words = {word.replace(" ", SPACE): i for word, i in words.items()}
        self._words = Matcher(words)
        self._specials: Matcher | None = None  # built when first needed: Llama 4 has 2,048 of them
        self._longest: int | None = None

    @property
    def bos_id(self) -> int | None:
        return self.special.bos

    @property
    def eos_id(self) -> int | None:
        return self.special.eos

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a turn; they are control tokens and no part of the answer."""
        return self.special.stops

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text encodes to: control tokens and the unknown token."""
        return self._control

    @property
    def add_bos(self) -> bool:
        """Whether the model expects the BOS token before a plain text (chat formats write their own)."""
        return self.special.add_bos

    def is_control(self, token: int) -> bool:
        return token in self._control

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling (`<|eot_id|>`), or None; the inverse of `token`."""
        spelling = token.encode("utf-8", "surrogateescape")
        found = self._vocabulary.ids.get(spelling)
        if self._vocabulary.spelling is Spelling.RAW and found not in self._vocabulary.kinds:
            found = self._vocabulary.ids.get(bytes_of(spelling))
        return found

    def token(self, token: int) -> str:
        """The spelling of a token as files have it: `\u0120the` or `\u2581the` for " the". Always printable as UTF-8.

        Raises UsageError for an id out of range.
        """
        self._check(token)
        spelling = self._vocabulary.tokens[token]
        if self._vocabulary.spelling is Spelling.RAW and token not in self._vocabulary.kinds:
            return spell(spelling)
        return spelling.decode("utf-8", "backslashreplace")

    @property
    def begins_with_space(self) -> bool:
        """Whether encoding writes a space of its own before a text, which decoding takes away again."""
        return self.prefix is not Prefix.NEVER and self._vocabulary.spelling is Spelling.PIECES

    def control_tokens(self) -> dict[str, int]:
        """spelling -> id of every control token."""
        return self._vocabulary.of(Kind.CONTROL, Kind.UNKNOWN)

    # Encoding ------------------------------------------------------------------------------------------------------
    def encode(
        self, text: str, *, bos: bool = False, special: bool = False, start: bool = True, space: bool = True
    ) -> list[int]:
        """The ids of `text`.

        bos: put the BOS token first (nothing for a model without one).
        special: parse the spellings of control tokens. Only for text that contains no user's words.
        start: the text begins the sequence (this matters to Prefix.METASPACE_FIRST only).
        space: False leaves out the space that SentencePiece puts before a text: this one continues another.
        Raises UsageError for a lone surrogate, which no UTF-8 text can hold.
        """
        ids = [self.special.bos] if bos and self.special.bos is not None else []
        if not special:
            return ids + self._plain(text, start, space)
        if self._specials is None:
            self._specials = Matcher(self.control_tokens())
        for part in self._specials.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._plain(part, start, space)
            start, space = False, True
        return ids

    def least(self, text: str) -> int:
        """A number of tokens that the text has at the least, found without encoding it: its bytes over those of the
        longest token. 0 where a text may have bytes that are in no token."""
        if self._longest is None:
            spelled = [self.token_bytes(i) for i in range(self.vocab_size) if i not in self._control]
            every = self.exact and len({raw for raw in spelled if len(raw) == 1}) == 256
            self._longest = max(map(len, spelled)) if every else 0
        if self._vocabulary.spelling is Spelling.PIECES:
            text = text.replace(SPACE, " ")  # which it is to such a vocabulary, in three bytes
        size = len(text.encode("utf-8", "surrogatepass"))
        return -(-size // self._longest) if self._longest else 0

    def _plain(self, text: str, start: bool, space: bool = True) -> list[int]:
        if not text:
            return []
        if self._vocabulary.spelling is Spelling.PIECES:
            text = text.replace(" ", SPACE)
            if self.prefix is Prefix.TEXT and space:
                text = SPACE + text
        ids: list[int] = []
        try:
            for part in self._words.split(text) if self._words else (text,):
                if isinstance(part, int):
                    ids.append(part)
                else:
                    ids += self._core(self._prefixed(part, start) if space else part)
                start, space = False, True
        except (TypeError, UnicodeEncodeError):
            raise _surrogate(text) from None
        return ids

    def _prefixed(self, part: str, start: bool) -> str:
        match self.prefix:
            case Prefix.PIECE:
                return SPACE + part
            case Prefix.METASPACE | Prefix.METASPACE_FIRST if not part.startswith(SPACE):
                return SPACE + part if start or self.prefix is Prefix.METASPACE else part
        return part

    def _core(self, text: str) -> list[int]:
        if self._chunks is None:
            return self._encode(text)
        return [token for chunk in self._chunks(text) for token in self._encode(chunk)]

    # Decoding ------------------------------------------------------------------------------------------------------
    def decode(self, ids: Sequence[int], *, skip_special: bool = True, start: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD, as `bytes.decode(errors="replace")` does it.

        skip_special: leave control tokens out; otherwise they are spelled out.
        start: the ids begin a text, so the space that encoding put first is taken away again; False when they continue
        one. Raises UsageError for an id out of range.
        """
        piece = self.pieces(skip_special=skip_special, start=start)
        return b"".join([piece(token) for token in ids]).decode("utf-8", "replace")

    def pieces(self, *, skip_special: bool = True, start: bool = True) -> Callable[[int], bytes]:
        """A function that gives, token after token of one sequence, the bytes each adds to the text."""
        first = start and self.prefix is not Prefix.NEVER

        def piece(token: int) -> bytes:
            nonlocal first
            raw = self.token_bytes(token)
            if token in self._control:
                return b"" if skip_special else raw
            if first:
                first = False
                if self._has_prefix(token):
                    return raw[1:]
            return raw

        return piece

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes of a token; a control token's are its spelling. Raises UsageError for an id out of range."""
        self._check(token)
        raw = self._bytes[token]
        if raw is None:
            raw = self._bytes[token] = self._spelled(token)
        return raw

    def _has_prefix(self, token: int) -> bool:
        """Whether the token begins with what would be encoding's own space, were it a text's first."""
        return self._vocabulary.spelling is Spelling.PIECES and self._vocabulary.tokens[token].startswith(_SPACE)

    def _spelled(self, token: int) -> bytes:
        spelling = self._vocabulary.tokens[token]
        kind = self._vocabulary.kinds.get(token, Kind.NORMAL)
        if kind in (Kind.CONTROL, Kind.UNKNOWN) or self._vocabulary.spelling is Spelling.RAW:
            return spelling
        if self._vocabulary.spelling is Spelling.ALPHABET:
            return spelling if kind == Kind.USER_DEFINED else bytes_of(spelling)
        if kind == Kind.BYTE and (byte := _BYTE_PIECE.fullmatch(spelling)):
            return bytes([int(byte[1], 16)])
        return spelling.replace(_SPACE, b" ")

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise UsageError(f"token {token} is not in the vocabulary: ids run from 0 to {self.vocab_size - 1}")


class Matcher:
    """Finds whole tokens in text: the leftmost, and of those that start there the longest."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = dict(ids)
        longest_first = sorted((t for t in self._ids if t), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def split(self, text: str) -> Iterator[str | int]:
        """The text between matches (never empty) and the ids of the matches, in order."""
        at = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            if match.start() > at:
                yield text[at : match.start()]
            yield self._ids[match[0]]
            at = match.end()
        if at < len(text):
            yield text[at:]


def _surrogate(text: str) -> Exception:
    for at, char in enumerate(text):
        if "\ud800" <= char <= "\udfff":
            return UsageError(f"the text holds a lone surrogate (U+{ord(char):04X}, character {at}): send valid UTF-8")
    return AssertionError(f"the tokenizer refused {text[:40]!r}")
