"""How byte-level vocabularies cut text into words before merging: one row per kind.

Sources: `tokenizer.json` of the models, Meta's llama3/tokenizer.py and llama4/tokenizer.py, mistral-common's tekken
files; the names are those of GGUF's `tokenizer.ggml.pre`. The patterns are in Oniguruma's syntax, which agrees with the
engines of tiktoken and Hugging Face on all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from herder.core.errors import UnsupportedModel

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
LLAMA4 = (  # o200k
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Split:
    """patterns: applied in turn. ignore_merges: a word that is a token is that token. add_bos: the kind's default."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_DEFAULT = Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_GPT2 = Split((GPT2,))
_DIGITS = Split((r"\p{N}", GPT2))
_LLAMA3 = Split((LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2 = Split((QWEN2,))
_LLAMA4 = Split((LLAMA4,), ignore_merges=True)

SPLITS: dict[str, Split] = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": Split((LLAMA3,)),
    "llama4": _LLAMA4,
    "gpt-4o": Split((LLAMA4,)),
    "tekken": Split((TEKKEN,), ignore_merges=True, add_bos=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
}


def split_named(name: str) -> Split:
    """Raises UnsupportedModel for a kind that is not in the table."""
    try:
        return SPLITS[name]
    except KeyError:
        known = ", ".join(SPLITS)
        raise UnsupportedModel(f"the vocabulary's tokenizer.ggml.pre is {name!r}: only {known} are read") from None


# What the properties mean among ASCII characters. \\s needs no row: re.ASCII gives it Unicode's six.
_ASCII = {
    "L": "A-Za-z",
    "N": "0-9",
    "Lu": "A-Z",
    "Ll": "a-z",
    "Lt": "",
    "Lm": "",
    "Lo": "",
    "M": "",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
}
_PROPERTY_OR_CLASS = re.compile(r"\\p\{(\w+)\}|\[(?:\\.|[^\\\]])*\]")


def ascii_pattern(pattern: str) -> str:
    """The pattern for Python's `re`, which has no \\p{..}: equal on ASCII texts under re.ASCII."""

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return f"[{_ASCII[match[1]]}]"
        return re.sub(r"\\p\{(\w+)\}", lambda p: _ASCII[p[1]], match[0])

    return _PROPERTY_OR_CLASS.sub(replace, pattern)
