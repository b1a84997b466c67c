"""The vocabulary inside a GGUF file -> Tokenizer.

Keys `tokenizer.ggml.*`: model (`gpt2`: byte-level BPE with merges, cut as `pre` says; `llama`: SentencePiece BPE with
scores), tokens, token_type, scores, merges, {bos,eos,eot,eom,unknown,padding}_token_id, add_{bos,eos}_token,
add_space_prefix. Source: docs/gguf.md of the ggml project; defaults of missing keys as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.text.bpe import ByteLevel, Encode, build, byte_alphabet, byte_level, fitting
from herder.text.splits import split_named
from herder.text.tokenizer import TURN_ENDS, Kind, Prefix, Special, Spelling, Tokenizer, Vocabulary, disguised, text_of

PREFIX = "tokenizer.ggml."
_NEITHER_SPACE_NOR_NEWLINE = bytes(byte for byte in range(256) if byte not in b" \n")


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Raises UnsupportedModel for a kind of vocabulary not read here, ModelFileError for contradictions in the file."""
    model = metadata.get(PREFIX + "model")
    if model is None:
        raise ModelFileError(f"the file has no vocabulary ({PREFIX}model is missing)")
    if model == "gpt2":
        return _byte_level(metadata)
    if model == "llama":
        return _pieces(metadata)
    raise UnsupportedModel(f"the vocabulary's {PREFIX}model is {model!r}: only gpt2 (BPE) and llama (SPM) are read")


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    pre = metadata.get(PREFIX + "pre")
    if not isinstance(pre, str):
        raise UnsupportedModel(
            f"the file does not say how its vocabulary cuts words ({PREFIX}pre is missing): convert the model anew"
        )
    split = split_named(pre)
    vocabulary = _vocabulary(metadata, Spelling.ALPHABET)
    merges = _spellings(metadata, "merges")
    ranks = dict(zip(merges, range(len(merges)), strict=True))
    if b"\n".join(merges).translate(None, _NEITHER_SPACE_NOR_NEWLINE) != b"\n".join([b" "] * len(merges)):
        odd = next(merge for merge in merges if merge.count(b" ") != 1 or b"\n" in merge)
        raise ModelFileError(f"{PREFIX}merges holds {odd!r}, which is not two tokens and a space")
    apart = vocabulary.kinds.keys()
    for i in apart:  # text must not be merged into a control token
        token = vocabulary.tokens[i]
        for cut in range(1, len(token)):
            ranks.pop(token[:cut] + b" " + token[cut:], None)

    def full() -> Encode:
        halves = text_of(b" ".join(merges)).split(" ")
        words = vocabulary.ordinary()
        pairs = fitting(list(zip(halves[::2], halves[1::2], strict=False)), words, vocabulary.of(*Kind))
        return byte_level(build(words, pairs, ignore_merges=split.ignore_merges), split.patterns)

    encode = ByteLevel(
        split,
        [char.encode() for char in byte_alphabet()[:128]],
        lambda spelling: None if (i := vocabulary.ids.get(spelling)) in apart else i,
        lambda left, right: ranks.get(left + b" " + right),
        full,
    )
    return Tokenizer(f"bpe/{pre}", vocabulary, encode, _special(metadata, vocabulary, add_bos=split.add_bos))


def _pieces(metadata: Mapping[str, Any]) -> Tokenizer:
    from herder.text.sentencepiece import piece_encoder

    vocabulary = _vocabulary(metadata, Spelling.PIECES)
    scores = _array(metadata, "scores", len(vocabulary.tokens))
    unknown = 0 if vocabulary.kinds.get(0) == Kind.UNKNOWN else None
    special = _special(metadata, vocabulary, add_bos=True, bos=1, eos=2, unknown=unknown)
    encode = piece_encoder(vocabulary, scores, special.unknown)
    prefix = Prefix.PIECE if _flag(metadata, "add_space_prefix", True) else Prefix.NEVER
    return Tokenizer("spm", vocabulary, encode, special, prefix=prefix)


def _vocabulary(metadata: Mapping[str, Any], spelling: Spelling) -> Vocabulary:
    tokens = _spellings(metadata, "tokens")
    types = _array(metadata, "token_type", len(tokens)) if PREFIX + "token_type" in metadata else ()
    try:
        kinds = {i: Kind(kind) for i, kind in enumerate(types) if kind != 1}
    except ValueError as error:
        raise ModelFileError(f"{PREFIX}token_type: {error}") from None
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):  # an empty spelling stands for an id without a token; anything else must be unique
        twice = [token for i, token in enumerate(tokens) if token and ids[token] != i]
        if twice:
            raise ModelFileError(f"{PREFIX}tokens holds {twice[0]!r} twice")
    ids.pop(b"", None)
    kinds |= disguised(ids, kinds, tokens)
    return Vocabulary(tokens, ids, kinds, spelling)


def _spellings(metadata: Mapping[str, Any], name: str) -> list[bytes]:
    """An array of strings as the file's bytes; without making strings when the array can give them (weights.gguf)."""
    array = _array(metadata, name)
    raw = getattr(array, "raw", None)
    if raw is not None:
        spellings: list[bytes] = raw()
        return spellings
    if set(map(type, array)) - {str}:
        raise ModelFileError(f"{PREFIX}{name} is not a list of strings")
    return [text.encode("utf-8", "surrogateescape") for text in array]


def _special(
    metadata: Mapping[str, Any],
    vocabulary: Vocabulary,
    *,
    add_bos: bool,
    bos: int | None = None,
    eos: int | None = None,
    unknown: int | None = None,
) -> Special:
    """The ids with a role; the keywords are the values of missing keys."""
    size = len(vocabulary.tokens)

    def token(name: str, missing: int | None = None) -> int | None:
        value = metadata.get(f"{PREFIX}{name}_token_id", missing)
        if value is None or (value == missing and value >= size):
            return None
        if not isinstance(value, int) or not 0 <= value < size:
            raise ModelFileError(f"{PREFIX}{name}_token_id is {value!r}: the vocabulary has {size} tokens")
        return value

    bos, eos = token("bos", bos), token("eos", eos)
    wants_bos = _flag(metadata, "add_bos_token", add_bos and bos is not None)
    if wants_bos and bos is None:
        raise ModelFileError(f"{PREFIX}add_bos_token is true, but the file names no BOS token")
    ends = {i for i in (eos, token("eot"), token("eom")) if i is not None}
    control = vocabulary.of(Kind.CONTROL)
    return Special(
        bos=bos,
        eos=eos,
        unknown=token("unknown", unknown),
        pad=token("padding"),
        stops=frozenset(ends | {control[name] for name in TURN_ENDS if name in control}),
        add_bos=wants_bos,
        add_eos=_flag(metadata, "add_eos_token", False),
    )


def _array(metadata: Mapping[str, Any], name: str, length: int | None = None) -> Sequence[Any]:
    value = metadata.get(PREFIX + name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ModelFileError(f"{PREFIX}{name} is missing or not an array")
    if length is not None and len(value) != length:
        raise ModelFileError(f"{PREFIX}{name} has {len(value)} entries: the vocabulary has {length} tokens")
    return value


def _flag(metadata: Mapping[str, Any], name: str, missing: bool) -> bool:
    value = metadata.get(PREFIX + name, missing)
    if not isinstance(value, bool):
        raise ModelFileError(f"{PREFIX}{name} is {value!r}: it must be true or false")
    return value
