"""Three witnesses for one result: plain merging, Hugging Face `tokenizers`, and a naive encoder written here."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import regex
from hypothesis import given, settings

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.text.bpe import (
    ByteLevel,
    Encode,
    build,
    byte_alphabet,
    bytes_of,
    encoder,
    fitting,
    isolate,
    merges_by_rank,
    spell,
)
from herder.text.load import load_tokenizer
from herder.text.splits import SPLITS, ascii_pattern, split_named
from herder.text.tiktoken import read_ranks
from herder.text.tokenizer import Tokenizer
from herder.weights.gguf import GGUF
from tests.text.texts import FRAGMENTS, ascii_text, every_character, text
from tests.text.vocabularies import mistral_file, package


class Both(NamedTuple):
    plain: ByteLevel
    full: Encode


@pytest.fixture(scope="module", params=["llama3", "llama4", "tekken", "smollm2"])
def both(request: pytest.FixtureRequest) -> Both:
    """One vocabulary's plain encoder, and its full one built beside it."""
    if request.param == "smollm2":
        with GGUF(request.getfixturevalue("smollm2")) as file:
            ours = load_tokenizer(file.metadata)
    elif request.param == "tekken":
        ours = load_tokenizer(mistral_file("tekken_240718.json"))
    else:
        ours = load_tokenizer(package("llama_models") / request.param / "tokenizer.model")
    plain = ours._encode
    assert isinstance(plain, ByteLevel) and plain._full is not None
    return Both(plain, plain._full())


def test_a_long_text_leaves_the_interpreter_to_others(smollm2: Path) -> None:
    with GGUF(smollm2) as file:
        tokenizer = load_tokenizer(file.metadata)
    tokenizer.encode("é")  # builds the full encoder
    words = "a few words " * 20_000
    ids: list[int] = []
    thread = threading.Thread(target=lambda: ids.extend(tokenizer.encode(words)))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 10
    assert ids[:8] == tokenizer.encode(words[:4000])[:8] and tokenizer.decode(ids) == words


@settings(max_examples=250)
@given(s=ascii_text)
def test_plain_merging_equals_the_library(both: Both, s: str) -> None:
    ids = both.plain._short(s)
    assert ids is None or ids == both.full(s)


def test_plain_merging_of_every_ascii_triple(both: Both) -> None:
    """Class changes are where patterns differ: every three characters of one class each."""
    characters = "aZ09 \t\n\r\x00\x0b\x1c\x7f.'/_st"
    for first in characters:
        s = " | ".join(first + a + b for a in characters for b in characters)
        assert both.plain._short(s) == both.full(s), repr(first)


def test_a_long_word_goes_to_the_library(both: Both) -> None:
    assert both.plain._short("a" * 65) is None
    assert both.plain._short("a" * 64) == both.full("a" * 64)


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """Llama 3's."""
    return {raw: i for i, raw in enumerate(read_ranks(package("llama_models") / "llama3/tokenizer.model"))}


def naive(word: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """tiktoken's rule in its shortest form: join the leftmost of the pairs whose concatenation ranks best."""
    parts = [word] if word in ranks else [word[i : i + 1] for i in range(len(word))]
    while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]:
        _, i = min(pairs)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return [ranks[part] for part in parts]


def test_the_naive_encoder_agrees_on_llama3(llama3: Tokenizer, ranks: dict[bytes, int]) -> None:
    pattern = regex.compile(SPLITS["llama3"].patterns[0])

    @given(s=text)
    def check(s: str) -> None:
        assert llama3.encode(s) == [i for word in pattern.findall(s) for i in naive(word.encode(), ranks)]

    check()
    for s in FRAGMENTS:
        check.hypothesis.inner_test(s)


def test_ties_between_the_splits_of_one_token(ranks: dict[bytes, int]) -> None:
    """A merge table must rank the splits of one token apart, where tiktoken takes the leftmost. It could matter where
    two splits overlap in the text (a+m and m+b are one token): try texts of that shape, all from the vocabulary."""
    texts = {
        token[:cut] + token
        for token in ranks
        for cut in range(1, len(token))
        if token.startswith(token[cut:]) and 2 * cut != len(token) and token[:cut] in ranks and token[cut:] in ranks
    }
    assert len(texts) > 1000
    spelled = {spell(raw): i for raw, i in ranks.items()}
    library = encoder(build(spelled, merges_by_rank(spelled, spelled), ignore_merges=True))
    for raw in random.Random(1).sample(sorted(texts), 400):
        for word in (raw, b"a" + raw, raw + b"a", raw + raw):
            assert library(spell(word)) == naive(word, ranks), word


# SmolLM2 ------------------------------------------------------------------------------------------------------------
def test_smollm2_equals_the_library_with_its_own_digits_and_byte_level(smollm: Tokenizer, smollm2: Path) -> None:
    """The pre-tokenizer that SmolLM2's tokenizer.json names: Digits (each by itself), then GPT-2's ByteLevel."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    with GGUF(smollm2) as file:
        tokens = list(file.metadata["tokenizer.ggml.tokens"])
        merges = [tuple(merge.split(" ")) for merge in file.metadata["tokenizer.ggml.merges"]]
    library = Library(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )

    @settings(max_examples=200)
    @given(s=text)
    def check(s: str) -> None:
        assert smollm.encode(s) == library.encode(s).ids

    check()
    for s in (*FRAGMENTS, *every_character(per_text=2000)):
        check.hypothesis.inner_test(s)


def test_smollm2_equals_a_naive_encoder_over_its_merges(smollm: Tokenizer, smollm2: Path) -> None:
    """From llama.cpp's description of the kind: each digit apart, then GPT-2's words, then the merges in order."""
    with GGUF(smollm2) as file:
        ids = {token: i for i, token in enumerate(file.metadata["tokenizer.ggml.tokens"])}
        merges = {tuple(merge.split(" ")): i for i, merge in enumerate(file.metadata["tokenizer.ggml.merges"])}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def encode(s: str) -> list[int]:
        found = []
        for stretch in regex.findall(r"\p{N}|\P{N}+", s):
            for word in words.findall(stretch):
                parts = [c for c in spell(word.encode()) if c in ids]
                while pairs := [(merges[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in merges]:
                    _, i = min(pairs)
                    parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
                found += [ids[part] for part in parts]
        return found

    check = given(s=text)(lambda s: _equal(smollm.encode(s), encode(s)))
    check()
    for s in FRAGMENTS:
        _equal(smollm.encode(s), encode(s))


def _equal(ours: list[int], theirs: list[int]) -> None:
    assert ours == theirs


def test_smollm2_has_no_token_for_six_control_characters(smollm: Tokenizer) -> None:
    """Nothing can be done about it: the vocabulary has neither these bytes nor an unknown token."""
    lost = [c for c in map(chr, range(128)) if smollm.decode(smollm.encode(c)) != c]
    assert lost == list("\x04\x06\x13\x14\x16\x1d")


# Tables -------------------------------------------------------------------------------------------------------------
def test_the_byte_alphabet_is_gpt2s() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert (alphabet[ord(" ")], alphabet[ord("\n")], alphabet[ord("a")], alphabet[0xAD]) == (
        "\u0120",
        "\u010a",
        "a",
        "\u0143",
    )
    assert all(bytes_of(spell(bytes([b])).encode()) == bytes([b]) for b in range(256))
    assert bytes_of("<|ünïcode 🦙|>".encode()) == "<|ünïcode 🦙|>".encode()


@pytest.mark.parametrize("name", SPLITS)
def test_ascii_patterns_cut_ascii_text_alike(name: str) -> None:
    """Against the `regex` module, an engine that knows the original's properties."""
    pairs = [(re.compile(ascii_pattern(p), re.ASCII), regex.compile(p)) for p in split_named(name).patterns]

    @settings(max_examples=50)
    @given(s=ascii_text)
    def check(s: str) -> None:
        for ours, theirs in pairs:
            assert isolate(ours, s) == isolate(theirs, s)

    check()


def test_unknown_kind_of_split() -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.pre is 'bloom'"):
        split_named("bloom")


def test_tables_that_do_not_fit() -> None:
    with pytest.raises(ModelFileError, match="do not fit"):
        build({"a": 0, "b": 2**40}, [])


def test_merges_of_left_out_tokens_are_dropped() -> None:
    """`<s>` is left out as a control token, `<s` only served to make it: neither is made from text."""
    vocab = {c: i for i, c in enumerate("<s>ab")} | {"<s": 5, "ab": 6}
    merges = [("<", "s"), ("<s", ">"), ("a", "b"), ("<s>", "a")]
    encode = encoder(build(vocab, fitting(merges, vocab, {"<s>", "<s>a"})))
    assert encode("<s>ab") == [5, 2, 6]


@pytest.mark.parametrize("merge", [("a", "x"), ("x", "a"), ("b", "a"), ("", "a"), ("a", "")])
def test_a_merge_of_nothing_known(merge: tuple[str, str]) -> None:
    with pytest.raises(ModelFileError, match="the vocabulary lacks"):
        fitting([("a", "b"), merge], {"a": 0, "b": 1, "ab": 2}, {"<s>"})
