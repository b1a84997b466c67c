"""A vocabulary written: as GGUF metadata, as tokenizer.json, as SentencePiece's or tiktoken's tokenizer.model.

GGUF keys as in ggml's docs/gguf.md; tokenizer.json as the `tokenizers` package reads it; SentencePiece's is the
protocol buffer of sentencepiece_model.proto; tiktoken's one line of `base64 rank` a token.
"""

from __future__ import annotations

import base64
import re
import struct
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from herder.convert.vocabulary import Words
from herder.core.errors import UnsupportedModel
from herder.text.bpe import bytes_of, merges_by_rank
from herder.text.splits import split_named
from herder.text.tiktoken import llama3_specials, llama4_specials
from herder.text.tokenizer import TURN_ENDS, Kind, Special

_PAD = re.compile(rb"\[PAD\d+\]")  # what llama.cpp's converter calls ids that have no token
_GGUF = "tokenizer.ggml."
_END_OF_MESSAGE = (b"<|eom_id|>", b"<|eom|>")


def gguf_vocabulary(words: Words, vocab: int, templates: Mapping[str, str]) -> dict[str, Any]:
    """The `tokenizer.*` keys for an embedding of `vocab` rows; ids without a token become `[PADn]`, unused."""
    tokens = [token or b"[PAD%d]" % i for i, token in enumerate(words.tokens)]
    tokens += [b"[PAD%d]" % i for i in range(len(tokens), vocab)]
    kinds = {i: Kind.UNUSED for i, token in enumerate(tokens) if i >= len(words.tokens) or not words.tokens[i]}
    kinds |= words.kinds
    found: dict[str, Any] = {_GGUF + "model": "gpt2" if words.kind == "bpe" else "llama"}
    if words.kind == "bpe":
        found[_GGUF + "pre"] = words.pre
    found[_GGUF + "tokens"] = tokens
    found[_GGUF + "token_type"] = array("i", [int(kinds.get(i, Kind.NORMAL)) for i in range(len(tokens))])
    if words.kind == "bpe":
        found[_GGUF + "merges"] = words.merges
    else:
        found[_GGUF + "scores"] = array("f", [*words.scores, *[0.0] * (len(tokens) - len(words.scores))])
        found[_GGUF + "add_space_prefix"] = words.space
    special = words.special
    for name, token in (
        ("bos", special.bos),
        ("eos", special.eos),
        ("unknown", special.unknown),
        ("padding", special.pad),
    ):
        if token is not None:
            found[f"{_GGUF}{name}_token_id"] = token
    found |= _ends(words)
    found |= {_GGUF + "add_bos_token": special.add_bos, _GGUF + "add_eos_token": special.add_eos}
    for name, template in templates.items():
        found["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = template
    return found


def _ends(words: Words) -> dict[str, Any]:
    """Tokens that end a turn or a message beside EOS: GGUF names one each; readers know the rest by spelling."""
    found: dict[str, Any] = {}
    for token in sorted(words.special.stops - {words.special.eos}):
        kind = "eom" if words.tokens[token] in _END_OF_MESSAGE else "eot"
        if found.setdefault(f"{_GGUF}{kind}_token_id", token) != token and _text(words.tokens[token]) not in TURN_ENDS:
            raise UnsupportedModel(
                f"the stop tokens {sorted(words.special.stops)} are more than GGUF can name: {token} would be lost"
            )
    return found


def hf_vocabulary(words: Words) -> tuple[str, dict[str, Any] | bytes]:
    """(file name, what it holds): tokenizer.json of a byte-level vocabulary, else SentencePiece's tokenizer.model."""
    return ("tokenizer.json", _tokenizer_json(words)) if words.kind == "bpe" else ("tokenizer.model", spm_model(words))


def hf_settings(words: Words, templates: Mapping[str, str]) -> dict[str, Any]:
    """tokenizer_config.json."""
    special = words.special
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if words.kind == "bpe" else "LlamaTokenizer",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": special.add_bos,
        "add_eos_token": special.add_eos,
    }
    for name, token in (("bos", special.bos), ("eos", special.eos), ("unk", special.unknown), ("pad", special.pad)):
        if token is not None:
            settings[f"{name}_token"] = _text(words.tokens[token])
    if list(templates) == ["default"]:
        settings["chat_template"] = templates["default"]
    elif templates:
        settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return settings


def _tokenizer_json(words: Words) -> dict[str, Any]:
    split = split_named(words.pre)
    cut = {"behavior": "Isolated", "invert": False}
    steps: list[dict[str, Any]] = [{"type": "Split", "pattern": {"Regex": p}, **cut} for p in split.patterns]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    apart = {
        i: kind
        for i, kind in sorted(words.kinds.items())
        if words.tokens[i] and not (kind is Kind.UNUSED and _PAD.fullmatch(words.tokens[i]))
    }
    added = [
        {"id": i, "content": _text(words.tokens[i]), **flags, "special": kind is not Kind.USER_DEFINED}
        for i, kind in apart.items()
    ]
    plain = {_text(token): i for i, token in enumerate(words.tokens) if token and i not in words.kinds}
    merges = _usable(words.merges, plain, {_text(words.tokens[i]) for i in apart})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, level]},
        "post_processor": _post_processor(words),
        "decoder": {**level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": split.ignore_merges,
            "vocab": plain | _between(words, plain, apart), "merges": list(merges),
        },
    }  # fmt: skip


def _between(words: Words, plain: Mapping[str, int], apart: Mapping[int, Kind]) -> dict[str, int]:
    """The added tokens that the model's own vocabulary must have too, and names for ids without a token.

    `tokenizers` numbers added tokens from the number of the model's tokens on, whatever ids the file gives them: all
    ids below its last must be there.
    """
    last = max(plain.values(), default=-1)
    found = {_text(words.tokens[i]): i for i in apart if i < last}
    taken = {*plain.values(), *apart}
    return found | {f"[PAD{i}]": i for i in range(max(apart, default=0)) if i not in taken}


def _usable(merges: Iterable[str], plain: Mapping[str, int], apart: set[str]) -> Iterable[list[str]]:
    """Merges of ordinary tokens. Those that make or use a control token, which no text may become, are left out."""
    for merge in merges:
        left, right = merge.split(" ")
        if not {left, right, left + right} & apart and left in plain and right in plain and left + right in plain:
            yield [left, right]


def _post_processor(words: Words) -> dict[str, Any] | None:
    special = words.special
    before = [special.bos] if special.add_bos and special.bos is not None else []
    after = [special.eos] if special.add_eos and special.eos is not None else []
    if not before and not after:
        return None

    def around(sequence: str, number: int) -> list[dict[str, Any]]:
        def tokens(ids: list[int]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": _text(words.tokens[i]), "type_id": number}} for i in ids]

        return [*tokens(before), {"Sequence": {"id": sequence, "type_id": number}}, *tokens(after)]

    named = {_text(words.tokens[i]): i for i in (*before, *after)}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in named.items()},
    }


def spm_model(words: Words) -> bytes:
    """SentencePiece's ModelProto. Raises UnsupportedModel for a token that is no piece."""
    data = bytearray()
    count = len(words.tokens)
    while count and words.kinds.get(count - 1) is Kind.UNUSED and _PAD.fullmatch(words.tokens[count - 1]):
        count -= 1
    for i in range(count):
        kind = words.kinds.get(i, Kind.NORMAL)
        if kind is Kind.UNUSED or not words.tokens[i]:
            raise UnsupportedModel(
                f"id {i} has no token, which SentencePiece's file cannot say: it cannot be converted"
            )
        piece = _field(1, words.tokens[i]) + b"\x15" + struct.pack("<f", words.scores[i])
        data += _field(1, piece + (b"" if kind is Kind.NORMAL else b"\x18" + _varint(kind)))
    special = words.special
    named = ((40, special.unknown), (41, special.bos), (42, special.eos), (43, special.pad))
    fallback = any(kind is Kind.BYTE for kind in words.kinds.values())
    trainer = _number(3, 2) + _number(4, count) + _number(35, int(fallback))
    trainer += b"".join(_number(number, -1 if token is None else token) for number, token in named)
    trainer += b"".join(_field(n + 5, words.tokens[token]) for n, token in named if token is not None)
    normalizer = _field(1, b"identity") + _number(3, int(words.space)) + _number(4, 0) + _number(5, 1)
    return bytes(data + _field(2, trainer) + _field(3, normalizer))


def tiktoken_model(words: Words) -> bytes:
    """The file of Llama 3 or 4. Raises UnsupportedModel for any other vocabulary."""
    size, names = (200_000, llama4_specials()) if len(words.tokens) > 200_000 else (128_000, llama3_specials())
    known = [_text(token) for token in words.tokens[:size]]
    ordinary = len(known) == size and not any(i < size for i in words.kinds)
    if not ordinary or set(words.merges) != {" ".join(merge) for merge in merges_by_rank(known, dict.fromkeys(known))}:
        raise UnsupportedModel("Meta's format has no file for this vocabulary: it is neither Llama 3's nor Llama 4's")
    if any(token and token != name.encode() for token, name in zip(words.tokens[size:], names, strict=False)):
        raise UnsupportedModel("Meta's format has no file for this vocabulary: its special tokens are not Meta's")
    lines = (base64.b64encode(bytes_of(token)) + b" %d\n" % rank for rank, token in enumerate(words.tokens[:size]))
    return b"".join(lines)


def stops_of(special: Special) -> list[int]:
    """EOS first, as generation_config.json has them."""
    first = [] if special.eos is None else [special.eos]
    return first + sorted(special.stops - set(first))


def _text(token: bytes) -> str:
    return token.decode("utf-8", "surrogateescape")


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & 0xFFFFFFFFFFFFFFFF)


def _varint(value: int) -> bytes:
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)
