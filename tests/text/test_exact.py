"""Equal, id for id, to the implementations the models were trained with: tiktoken, sentencepiece, mistral-common."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings

from herder.text.load import load_tokenizer
from herder.text.tokenizer import Tokenizer
from tests.text.texts import FRAGMENTS, LONG, every_character, text
from tests.text.vocabularies import mistral_file

Ids = Callable[[str], list[int]]
KINDS = ("llama3", "llama4", "tekken", "spm")


def meta(version: int) -> Ids:
    import importlib

    reference = importlib.import_module(f"llama_models.llama{version}.tokenizer").Tokenizer.get_instance()
    return lambda s: reference.encode(s, bos=False, eos=False)


def sentencepiece(name: str) -> Ids:
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(mistral_file(name)))
    return lambda s: reference.encode(s)


def mistral_tekken() -> Ids:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    reference = Tekkenizer.from_file(mistral_file("tekken_240911.json"))
    return lambda s: reference.encode(s, bos=False, eos=False)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Ids]:
    reference = {
        "llama3": lambda: meta(3),
        "llama4": lambda: meta(4),
        "tekken": mistral_tekken,
        "spm": lambda: sentencepiece("mistral_instruct_tokenizer_240323.model.v3"),
    }[request.param]
    return request.getfixturevalue(request.param), reference()


def test_nasty_texts(pair: tuple[Tokenizer, Ids]) -> None:
    ours, reference = pair
    for s in LONG:
        assert ours.encode(s) == reference(s), repr(s[:80])
    for s in FRAGMENTS:
        for around in (s, f"a{s}", f"{s}b", f" {s} ", f"x\n{s}\ny"):
            assert ours.encode(around) == reference(around), repr(around[:80])


def test_every_pair_of_fragments(pair: tuple[Tokenizer, Ids]) -> None:
    ours, reference = pair
    for a in FRAGMENTS:
        s = "|".join(a + b for b in FRAGMENTS)
        assert ours.encode(s) == reference(s), repr(a)


def test_runs_of_spaces(pair: tuple[Tokenizer, Ids]) -> None:
    """SentencePiece's pieces of several spaces all have one score: of equal scores the leftmost pair joins first."""
    ours, reference = pair
    for n in range(140):
        for before, after in (("", ""), ("a", "b"), ("\n", "\n"), ("", "the"), ("é", "1")):
            s = before + " " * n + after
            assert ours.encode(s) == reference(s), (n, before, after)


def test_every_assigned_character(pair: tuple[Tokenizer, Ids]) -> None:
    ours, reference = pair
    for s in every_character():
        assert ours.encode(s) == reference(s), repr(s[:20])


@settings(max_examples=200)
@given(s=text)
@example(s="\u0120the \u010a")
def test_any_text(pair: tuple[Tokenizer, Ids], s: str) -> None:
    ours, reference = pair
    assert ours.encode(s) == reference(s)
    assert ours.least(s) <= len(ours.encode(s))


def test_how_many_tokens_a_long_text_has_at_the_least(pair: tuple[Tokenizer, Ids]) -> None:
    ours, _ = pair
    longest = max((ours.token_bytes(i) for i in range(ours.vocab_size) if not ours.is_control(i)), key=len)
    for s in (*LONG, longest.decode(errors="replace") * 50):
        assert 0 < ours.least(s) <= len(ours.encode(s)) or not s
    assert ours.least("llama " * 100_000) >= 600_000 // len(longest)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model.v1",
        "mistral_instruct_tokenizer_240216.model.v2",
        "mistral_instruct_tokenizer_241114.model.v7",
        "mistral_instruct_tokenizer_241114.model.v7m1",
    ],
)
def test_the_other_sentencepiece_files(name: str) -> None:
    ours, reference = load_tokenizer(mistral_file(name)), sentencepiece(name)
    for s in (*FRAGMENTS, *LONG):
        assert ours.encode(s) == reference(s), repr(s[:80])


@pytest.mark.parametrize("unit", ["a", " ", "ab c", "\n", "中", "ä", "x" * 24_999 + " ", " " * 24_999 + "x"])
@pytest.mark.parametrize("length", [24_999, 25_000, 25_001, 60_000, 400_001])
def test_meta_cuts_long_texts(llama3: Tokenizer, unit: str, length: int) -> None:
    s = (unit * (length // len(unit) + 1))[:length]
    assert llama3.encode(s) == meta(3)(s)


def test_meta_special_tokens(llama3: Tokenizer, llama4: Tokenizer) -> None:
    from llama_models.llama3.tokenizer import Tokenizer as Llama3
    from llama_models.llama4.tokenizer import Tokenizer as Llama4

    for ours, reference in ((llama3, Llama3.get_instance()), (llama4, Llama4.get_instance())):
        assert ours.control_tokens() == reference.special_tokens
        assert ours.vocab_size == reference.n_words
        assert (ours.bos_id, ours.eos_id) == (reference.bos_id, reference.eos_id)
        assert ours.stop_ids == set(reference.stop_tokens)
        assert ours.special.pad == reference.pad_id
        every = "a" + " b".join(reference.special_tokens)
        for s in (every[:20_000], every[-20_000:]):
            assert ours.encode(s, special=True) == reference.encode(s, bos=False, eos=False, allowed_special="all")
            assert ours.special_ids.isdisjoint(ours.encode(s))


def test_decoding(pair: tuple[Tokenizer, Ids]) -> None:
    ours, _ = pair
    for s in (*FRAGMENTS, *LONG):
        assert ours.decode(ours.encode(s)) == s.replace("\u2581", " " if ours.name == "spm" else "\u2581")


def test_every_token_has_a_spelling_of_its_own(pair: tuple[Tokenizer, Ids]) -> None:
    ours, _ = pair
    for i in range(ours.vocab_size):
        assert ours.id_of(ours.token(i)) == i
        ours.token(i).encode()


def test_sentencepiece_decodes_alike(spm: Tokenizer) -> None:
    """Except that it makes one U+FFFD of each bad byte, and we, like tiktoken and Python, one of each bad sequence."""
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(mistral_file("mistral_instruct_tokenizer_240323.model.v3")))
    space = spm.encode("a")[0], spm.encode("  a")[0], *spm.encode(" ")
    for first in (1, 2, *space, *range(1020, 1100)):
        for second in (1, *space, 1024):
            for ids in ([first, second], [first, second, second], [1, first, second], [second, 1, first]):
                assert spm.decode(ids) == reference.decode(ids), ids
