"""Meta's `tokenizer.model` in tiktoken's format (Llama 3 and Llama 4) -> Tokenizer.

The file has one line a token, `base64(bytes) rank`; rank is id. Special tokens are not in the file: their names and
order, the word pattern and the cutting of long texts are those of Meta's llama3/tokenizer.py and llama4/tokenizer.py.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.text.bpe import ByteLevel, Encode, build, byte_level, merges_by_rank, spell
from herder.text.splits import Split, split_named
from herder.text.tokenizer import Kind, Special, Spelling, Tokenizer, Vocabulary

MAX_FILE = 64 << 20  # bytes; Llama 4's has 3.6 MB
MAX_RUN = 25_000  # characters of one word, or of one stretch of white space, that Meta encodes at once
_LLAMA3, _LLAMA4 = 128_000, 200_000  # tokens in the file
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,7})\r?\n?")


def is_tiktoken(head: bytes) -> bool:
    """Whether a file that begins with `head` is in tiktoken's format."""
    return _LINE.match(head) is not None


def tiktoken_tokenizer(path: Path) -> Tokenizer:
    """Raises ModelFileError for a damaged file, UnsupportedModel for a vocabulary that is neither Llama 3's nor 4's."""
    ranked = read_ranks(path)
    if len(ranked) == _LLAMA3:
        names, pre = llama3_specials(), "llama3"
        bos, eos, pad, ends = names[0], names[1], "<|finetune_right_pad_id|>", ("<|eom_id|>", "<|eot_id|>")
    elif len(ranked) == _LLAMA4:
        names, pre = llama4_specials(), "llama4"
        bos, eos, pad, ends = names[0], names[1], "<|finetune_right_pad|>", ("<|eom|>", "<|eot|>")
    else:
        raise UnsupportedModel(
            f"{path} has {len(ranked)} tokens: only Llama 3's {_LLAMA3} and Llama 4's {_LLAMA4} come in this format"
        )
    special = {name: len(ranked) + i for i, name in enumerate(names)}
    return rank_tokenizer(
        f"tiktoken/{pre}",
        split_named(pre),
        ranked,
        [*ranked, *(name.encode() for name in names)],
        dict.fromkeys(special.values(), Kind.CONTROL),
        Special(
            bos=special[bos],
            eos=special[eos],
            pad=special[pad],
            stops=frozenset({special[eos], *(special[end] for end in ends)}),
            add_bos=True,
        ),
        first=0,
        meta=True,
    )


def rank_tokenizer(
    name: str,
    split: Split,
    ranked: Sequence[bytes],
    tokens: Sequence[bytes],
    kinds: dict[int, Kind],
    special: Special,
    *,
    first: int,
    meta: bool = False,
    version: str | None = None,
) -> Tokenizer:
    """A tokenizer over ranks instead of merges.

    ranked: the bytes of each token, best rank first; the id of the first is `first`.
    tokens: the bytes of every id, special tokens included. meta: cut long texts as Meta does.
    """
    ids = {raw: first + i for i, raw in enumerate(ranked)}
    if len(ids) != len(ranked) or any(bytes([byte]) not in ids for byte in range(256)):
        raise ModelFileError(f"the {name} vocabulary holds a token twice, or lacks one of the 256 bytes")

    def full() -> Encode:
        spelled = {spell(raw): first + i for i, raw in enumerate(ranked)}
        merges = merges_by_rank(spelled, spelled)
        return byte_level(build(spelled, merges, ignore_merges=split.ignore_merges), split.patterns)

    encode = ByteLevel(
        split,
        [bytes([byte]) for byte in range(128)],
        ids.get,
        lambda left, right: ids.get(left + right),
        full,
    )
    vocabulary = Vocabulary(tokens, ids | {tokens[i]: i for i in kinds}, kinds, Spelling.RAW)
    return Tokenizer(name, vocabulary, encode, special, chunks=meta_chunks if meta else None, version=version)


def read_ranks(path: Path) -> list[bytes]:
    """The tokens of a tiktoken file in order of rank. Raises ModelFileError unless the ranks are 0, 1, 2, ..."""
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ModelFileError(f"{path} has {size} bytes: a tiktoken vocabulary has at most {MAX_FILE}")
    words = path.read_bytes().split()
    try:
        ranks = list(map(int, words[1::2]))
        tokens = [binascii.a2b_base64(word, strict_mode=True) for word in words[::2]]
    except ValueError as error:  # binascii.Error is one
        raise ModelFileError(f"{path} is not a tiktoken vocabulary, or is damaged: {error}") from error
    if len(words) % 2 or sorted(ranks) != list(range(len(tokens))):
        raise ModelFileError(f"{path} is damaged: its ranks are not 0 to {len(tokens) - 1}, each once")
    return [token for _, token in sorted(zip(ranks, tokens, strict=True))]


def meta_chunks(text: str) -> Iterator[str]:
    """Cuts a long text as Meta's encoder does: every 400,000 characters, and inside those after each run of 25,000
    characters that are all white space or all not (str.isspace). The cuts can change the ids next to them.
    """
    if len(text) <= MAX_RUN:
        yield text
        return
    for begin in range(0, len(text), 400_000):
        part = text[begin : begin + 400_000]
        start = run = 0
        space = part[0].isspace()
        for at, char in enumerate(part):
            if char.isspace() != space:
                space, run = not space, 1
            elif run == MAX_RUN:
                yield part[start:at]
                start, run = at, 1
            else:
                run += 1
        yield part[start:]


def llama3_specials() -> list[str]:
    """The 256 special tokens that follow Llama 3's 128,000, in order of id."""
    named = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
        *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"),
    ]
    return named + _reserved("", 2, 256 - len(named))


def llama4_specials() -> list[str]:
    """The 2,048 special tokens that follow Llama 4's 200,000, in order of id."""
    named = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
        *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"),
        *_reserved("text_post_train_", 0, 6),
        *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"),
        *_reserved("text_post_train_", 8, 61),
        *("<|image_start|>", "<|image_end|>"),
        *_reserved("vision_", 0, 2),
        *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        *_reserved("vision_", 2, 4),
        "<|image|>",
        *_reserved("vision_", 6, 1),
        "<|patch|>",
        *_reserved("vision_", 7, 1041),
        *_reserved("reasoning_", 0, 8),
        *("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"),
    ]
    return named + _reserved("", 0, 2048 - len(named))


def _reserved(group: str, first: int, count: int) -> list[str]:
    return [f"<|{group}reserved_special_token_{first + i}|>" for i in range(count)]
