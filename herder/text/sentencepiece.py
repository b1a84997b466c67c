"""SentencePiece `tokenizer.model` files, BPE kind -> Tokenizer; and its encoder, which GGUF's `llama` kind shares.

The file is a protocol buffer (`ModelProto` of sentencepiece_model.proto); the few fields that matter are read by the
bounded reader below, so that neither the sentencepiece nor the protobuf package is needed.

The encoder joins neighbours whose concatenation is a piece, best score first; characters that are no piece become their
UTF-8 bytes (`<0xNN>`). Source: sentencepiece `bpe_model.cc`, `normalizer.cc`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.text.bpe import Encode, build, encoder, merges_by_rank
from herder.text.tokenizer import Kind, Prefix, Special, Spelling, Tokenizer, Vocabulary, disguised, text_of

MAX_FILE = 64 << 20  # bytes; the largest known (Gemma's) has 4 MiB
_END_OF_INFILL = "\u2581<EOT>".encode()  # Code Llama's
_VERSION = re.compile(r"\.model\.(v\d+)(?:m\d+)?$")  # Mistral's: tokenizer.model.v3, and v7m1 for one with images
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


def sentencepiece_tokenizer(path: Path) -> Tokenizer:
    """Reads a `.model` file.

    Raises UnsupportedModel for another kind than BPE or a normalization other than identity, ModelFileError for a file
    that is not a SentencePiece model.
    """
    if path.stat().st_size > MAX_FILE:
        raise ModelFileError(f"{path} has {path.stat().st_size} bytes: a SentencePiece model has at most {MAX_FILE}")
    try:
        return _tokenizer(path.read_bytes(), path)
    except (IndexError, ValueError, struct.error) as error:
        if isinstance(error, ModelFileError | UnsupportedModel):
            raise
        raise ModelFileError(f"{path} is not a SentencePiece model, or is damaged: {error}") from error


def _tokenizer(data: bytes, path: Path) -> Tokenizer:
    tokens: list[bytes] = []
    scores: list[float] = []
    kinds: dict[int, Kind] = {}
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(fields(value))
            kind = Kind(_integer(piece, 3, 1))
            if kind != Kind.NORMAL:
                kinds[len(tokens)] = kind
            tokens.append(_bytes(piece, 1))
            scores.append(struct.unpack("<f", _bytes(piece, 2, bytes(4)))[0])
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(fields(value))
    if not tokens:
        raise ModelFileError(f"{path} is not a SentencePiece model: it has no pieces")
    model = _MODEL_TYPES.get(_integer(trainer, 3, 1), "unknown")
    if model != "bpe":
        raise UnsupportedModel(f"{path} is a SentencePiece model of kind {model}: only bpe is read")
    refused = {
        "a normalization table": bool(_bytes(normalizer, 2, b"")),
        "remove_extra_whitespaces": bool(_integer(normalizer, 4, 1)),
        "escape_whitespaces off": not _integer(normalizer, 5, 1),
        "treat_whitespace_as_suffix": bool(_integer(trainer, 24, 0)),
        "unused pieces": Kind.UNUSED in kinds.values(),
    }
    for what, present in refused.items():
        if present:
            raise UnsupportedModel(f"{path} has {what}, which no Llama vocabulary has and which is not read here")
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        raise ModelFileError(f"{path} holds {next(t for i, t in enumerate(tokens) if ids[t] != i)!r} twice")
    kinds |= disguised(ids, kinds, tokens)
    vocabulary = Vocabulary(tokens, ids, kinds, Spelling.PIECES)
    special = _special(trainer, vocabulary)
    encode = piece_encoder(vocabulary, scores, special.unknown)
    prefix = Prefix.TEXT if _integer(normalizer, 3, 1) else Prefix.NEVER
    version = _VERSION.search(path.name)
    return Tokenizer("spm", vocabulary, encode, special, prefix=prefix, version=version[1] if version else None)


def _special(trainer: dict[int, int | bytes], vocabulary: Vocabulary) -> Special:
    """unk_piece 45, bos_piece 46, eos_piece 47, pad_piece 48 of TrainerSpec: roles go by spelling."""

    def token(number: int, spelling: str) -> int | None:
        found = vocabulary.ids.get(_bytes(trainer, number, spelling.encode()))
        return found if found is not None and vocabulary.kinds.get(found) in (Kind.CONTROL, Kind.UNKNOWN) else None

    eos = token(47, "</s>")
    bos = token(46, "<s>")
    return Special(
        bos=bos,
        eos=eos,
        unknown=token(45, "<unk>"),
        pad=token(48, "<pad>"),
        stops=frozenset({i for i in (eos, vocabulary.ids.get(_END_OF_INFILL)) if i is not None}),
        add_bos=bos is not None,
    )


def piece_encoder(vocabulary: Vocabulary, scores: Sequence[float], unknown: int | None) -> Encode:
    """The encoder of a SentencePiece vocabulary: text with spaces already escaped -> ids.

    Characters that occur in pieces without being one can still be joined, so they get ids past the vocabulary, which
    are replaced afterwards by what the character alone would give: its bytes, or the unknown token.
    """
    words = vocabulary.ordinary()
    size = len(vocabulary.tokens)
    missing = sorted(set("".join(words)) - words.keys())
    known = words | {char: size + i for i, char in enumerate(missing)}
    ranked = sorted((t for t in words if len(t) > 1), key=lambda t: (-scores[words[t]], words[t]))
    merges = merges_by_rank(ranked, known)

    byte_ids = vocabulary.of(Kind.BYTE)
    fallback = all(f"<0x{byte:02X}>" in byte_ids for byte in range(256))
    model = known | (byte_ids if fallback else {})
    unknown_token = None
    if unknown is not None:
        unknown_token = text_of(vocabulary.tokens[unknown])
        model |= {unknown_token: unknown}
    elif not fallback:
        raise ModelFileError("the vocabulary has neither byte tokens nor an unknown token: some texts have no tokens")
    encode = encoder(build(model, merges, byte_fallback=fallback, unk_token=unknown_token, fuse_unk=True))
    if not missing:
        return encode
    alone = {
        size + i: [byte_ids[f"<0x{byte:02X}>"] for byte in char.encode()] if fallback else [unknown or 0]
        for i, char in enumerate(missing)
    }
    return lambda text: [part for token in encode(text) for part in alone.get(token, (token,))]


# Protocol buffers -------------------------------------------------------------------------------------------------
def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one message: an int for varints, the raw bytes for everything else.

    Raises ValueError for what is not a message, IndexError for one that ends in the middle.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if number == 0 or at + length > len(data):
            raise ValueError(f"field {number} of {length} bytes runs past the end at byte {at}")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than 10 bytes at byte {at}")


def _integer(message: dict[int, int | bytes], number: int, missing: int) -> int:
    value = message.get(number, missing)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not a number")
    return value


def _bytes(message: dict[int, int | bytes], number: int, missing: bytes | None = None) -> bytes:
    value = message.get(number, missing)
    if not isinstance(value, bytes):
        raise ValueError(f"field {number} is not a string")
    return value
