"""Texts that tokenizers get wrong."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from hypothesis import strategies as st

FRAGMENTS = (
    *("", " ", "  ", "\n", "\r\n", "\n\n\n", "\t", "\v\f", "\x00", "\x1c", "\x7f", "\x85", "\xa0", "\u2028", "\u3000"),
    *("Hello", "hello", "HELLO", "don't", "DON'T", "I'LL", "we've", "x\u017ft", "'\u017f", "can\u2019t"),
    *("0", "12", "123", "1234", "12345678", "3.14", "\u0664\u0665", "\u00bd", "\u2167", "\uff11\uff12"),
    *("!", "!!!", "...", "?!", "()", "[]", "{}", "//", "</a>", "#include", "_x_", "--", "\u2014", "\u00bf"),
    *("café", "cafe\u0301", "Straße", "naïve", "İstanbul", "ﬁn", "ǅ", "a\u0300\u0301\u0302"),
    *("你好", "日本語", "한국어", "العربية", "שלום", "हिन्दी", "ไทย"),
    *("🦙", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "🇩🇪", "\u2764\ufe0f", "\U0001d518", "𠀀"),
    *("\u200b", "\u200d", "\u200f", "\ufeff", "\ufffd", "\ue000", "\U0010ffff", "\u2581", "\u2581\u2581"),
    *("<|eot_id|>", "<|im_end|>", "<|begin_of_text|>", "<s>", "</s>", "<unk>", "<0x0A>", "[INST]", "<|eot|>"),
    *("[REFERENCE_DOC_1]", "[REFERENCE_DOC_19]", "[REFERENCE_DOC_", "<|", "|>", "Assistant", "the", "ing", "\u0120the"),
)  # fmt: skip
LONG = (
    *("a" * 300, "ab" * 500, " " * 1000, "\n" * 300, "\u4e2d" * 200, "\U0001f600" * 100, "=" * 5000, "1" * 1000),
    *("A" * 3000, "\u2581" * 200, "\t" * 130, " \n" * 200, "aA" * 300, "\u0301" * 500),
)

# Anything UTF-8 can hold, fragments more often than chance would make them.
text = st.lists(
    st.one_of(
        st.sampled_from(FRAGMENTS),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.integers(1, 40).map(lambda n: " " * n),
    ),
    max_size=12,
).map("".join)
ascii_text = st.lists(
    st.one_of(
        st.sampled_from([f for f in FRAGMENTS if f.isascii()]),
        st.text(st.characters(max_codepoint=127), max_size=12),
    ),
    max_size=12,
).map("".join)


def every_character(per_text: int = 200) -> Iterator[str]:
    """Texts that together hold each assigned character among letters, digits, spaces, newlines and apostrophes."""
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")]
    # Three big blocks behave alike throughout: ideographs and Hangul syllables. One in sixteen stands for all.
    kept = [
        c for i, c in enumerate(assigned) if i % 16 == 0 or not unicodedata.name(c, "").startswith(("CJK", "HANGUL"))
    ]
    for begin in range(0, len(kept), per_text):
        yield "".join(f"a{c}b {c}{c} 1{c}2'{c} \n{c}\n A{c}B" for c in kept[begin : begin + per_text])
