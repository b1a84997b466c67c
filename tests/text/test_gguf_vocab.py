"""Vocabularies in GGUF metadata: made from the real ones, and damaged in every way."""

from __future__ import annotations

import copy
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel, UsageError
from herder.text.bpe import merges_by_rank, spell
from herder.text.load import load_tokenizer
from herder.text.tiktoken import read_ranks
from herder.text.tokenizer import Kind, Tokenizer
from herder.weights.gguf import GGUF
from tests.text.texts import FRAGMENTS, LONG, text
from tests.text.vocabularies import mistral_file, package

P = "tokenizer.ggml."


@pytest.fixture(scope="module")
def llama3_gguf(llama3: Tokenizer) -> Tokenizer:
    """Llama 3's vocabulary as a GGUF holds it: byte-alphabet spellings, merges, token types."""
    ranked = [spell(raw) for raw in read_ranks(package("llama_models") / "llama3/tokenizer.model")]
    special = list(llama3.control_tokens())
    return load_tokenizer(
        {
            P + "model": "gpt2",
            P + "pre": "llama-bpe",
            P + "tokens": ranked + special,
            P + "token_type": array("i", [1] * len(ranked) + [3] * len(special)),
            P + "merges": [" ".join(merge) for merge in merges_by_rank(ranked, {t: i for i, t in enumerate(ranked)})],
            P + "bos_token_id": 128000,
            P + "eos_token_id": 128009,
        }
    )


def test_llama3_from_gguf_equals_llama3_from_meta(llama3_gguf: Tokenizer, llama3: Tokenizer) -> None:
    assert llama3_gguf.control_tokens() == llama3.control_tokens()
    assert llama3_gguf.stop_ids == llama3.stop_ids
    assert llama3_gguf.add_bos
    for s in (*FRAGMENTS, *LONG):
        assert llama3_gguf.encode(s, bos=True) == llama3.encode(s, bos=True), repr(s[:40])
    check = settings(max_examples=200)(given(s=text)(lambda s: _same(llama3_gguf, llama3, s)))
    check()
    assert [llama3_gguf.token_bytes(i) for i in range(128256)] == [llama3.token_bytes(i) for i in range(128256)]


def _same(a: Tokenizer, b: Tokenizer, s: str) -> None:
    assert a.encode(s) == b.encode(s)
    assert a.decode(a.encode(s)) == b.decode(b.encode(s)) == s


@pytest.fixture(scope="module")
def spm_metadata(spm: Tokenizer) -> dict[str, Any]:
    """Mistral's v1 pieces as a GGUF holds them, read by the sentencepiece package."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(mistral_file("tokenizer.model.v1")))
    ids = range(model.vocab_size())

    def kind(i: int) -> Kind:
        tests = {Kind.UNKNOWN: model.is_unknown, Kind.CONTROL: model.is_control, Kind.BYTE: model.is_byte}
        return next((kind for kind, test in tests.items() if test(i)), Kind.NORMAL)

    return {
        P + "model": "llama",
        P + "tokens": [model.id_to_piece(i) for i in ids],
        P + "scores": array("f", [model.get_score(i) for i in ids]),
        P + "token_type": array("i", [kind(i) for i in ids]),
    }


def test_pieces_from_gguf_equal_sentencepiece(spm_metadata: dict[str, Any]) -> None:
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(mistral_file("tokenizer.model.v1")))
    ours = load_tokenizer(spm_metadata)
    assert (ours.bos_id, ours.eos_id, ours.special.unknown, ours.add_bos) == (1, 2, 0, True)
    assert ours.stop_ids == {2}
    for s in (*FRAGMENTS, *LONG):
        assert ours.encode(s) == reference.encode(s), repr(s[:40])

    @given(s=text)
    def check(s: str) -> None:
        assert ours.encode(s) == reference.encode(s)
        assert ours.decode(ours.encode(s)) == s.replace("\u2581", " ")

    check()


def test_pieces_without_the_prefix_space(spm_metadata: dict[str, Any]) -> None:
    ours = load_tokenizer({**spm_metadata, P + "add_space_prefix": False})
    assert ours.decode(ours.encode("word")) == "word"
    assert ours.decode(ours.encode(" word")) == " word"
    assert ours.encode(" word") == load_tokenizer(spm_metadata).encode("word")


def test_each_text_after_a_control_token_has_its_prefix_space(spm_metadata: dict[str, Any]) -> None:
    """As in llama.cpp, and as Mistral's own encoder has it."""
    ours = load_tokenizer(spm_metadata)
    assert ours.encode("a</s>a", special=True) == [*ours.encode("a"), 2, *ours.encode("a")]
    assert ours.encode("a</s>a", bos=True) == [1, *ours.encode("a</s>a")]


# A small byte-level vocabulary ----------------------------------------------------------------------------------------
def small(**changes: Any) -> dict[str, Any]:
    tokens = [*"abcdefgh <>|s", "ab", "abc", "<s>", "[doc]", "bc"]
    types = [Kind.NORMAL] * (len(tokens) - 3) + [Kind.CONTROL, Kind.USER_DEFINED, Kind.NORMAL]
    found = {
        P + "model": "gpt2",
        P + "pre": "default",
        P + "tokens": tokens,
        P + "token_type": array("i", types),
        P + "merges": ["a b", "b c", "ab c"],
        P + "bos_token_id": 15,
    }
    found |= {P + name: value for name, value in changes.items()}
    return {key: value for key, value in found.items() if value is not None}


def test_control_tokens_are_text_and_user_defined_ones_are_tokens() -> None:
    ours = load_tokenizer(small())
    assert ours.encode("abc[doc]<s>") == [14, 16, 9, 12, 10]
    assert ours.encode("abc[doc]<s>", special=True) == [14, 16, 15]
    assert ours.encode("é[doc]<s>")[-4:] == [16, 9, 12, 10]  # through the full encoder
    assert ours.encode("ab", bos=True) == [15, 13]
    assert (ours.is_control(15), ours.is_control(16), ours.special_ids) == (True, False, {15})
    assert (ours.id_of("<s>"), ours.id_of("abc"), ours.id_of("nope")) == (15, 14, None)
    assert ours.token(15) == "<s>"
    assert ours.decode([14, 15, 16]) == "abc[doc]"
    assert ours.decode([14, 15, 16], skip_special=False) == "abc<s>[doc]"


def test_merges_never_make_a_control_token() -> None:
    tokens = [*small()[P + "tokens"], "<d", "<da"]
    types = array("i", [*small()[P + "token_type"], 3, 1])
    ours = load_tokenizer(small(tokens=tokens, token_type=types, merges=["< d", "<d a"], pre="qwen2"))
    assert ours.encode("<da") == [9, 3, 0]
    assert ours.encode("é<da")[-3:] == [9, 3, 0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "t5"}, UnsupportedModel, "tokenizer.ggml.model is 't5'"),
        ({"model": None}, ModelFileError, "no vocabulary"),
        ({"pre": "bloom"}, UnsupportedModel, "tokenizer.ggml.pre is 'bloom'"),
        ({"pre": None}, UnsupportedModel, "tokenizer.ggml.pre is missing"),
        ({"tokens": None}, ModelFileError, "tokens is missing"),
        ({"tokens": []}, ModelFileError, "token_type has 18 entries: the vocabulary has 0"),
        ({"tokens": array("i", [1, 2])}, ModelFileError, "tokens is not a list of strings"),
        ({"tokens": "abc"}, ModelFileError, "tokens is missing or not an array"),
        ({"tokens": ["a"] * 18}, ModelFileError, "holds b'a' twice"),
        ({"token_type": array("i", [1])}, ModelFileError, "token_type has 1 entries: the vocabulary has 18"),
        ({"token_type": array("i", [7] * 18)}, ModelFileError, "7 is not a valid Kind"),
        ({"merges": None}, ModelFileError, "merges is missing"),
        ({"merges": ["a b", "ab"]}, ModelFileError, "merges holds b'ab', which is not two tokens and a space"),
        ({"merges": ["a b c", "a"]}, ModelFileError, "merges holds b'a b c'"),
        ({"merges": ["a b\nc d"]}, ModelFileError, "merges holds"),
        ({"bos_token_id": 18}, ModelFileError, "bos_token_id is 18: the vocabulary has 18 tokens"),
        ({"eos_token_id": -1}, ModelFileError, "eos_token_id is -1"),
        ({"eos_token_id": "x"}, ModelFileError, "eos_token_id is 'x'"),
        ({"add_bos_token": 1}, ModelFileError, "add_bos_token is 1: it must be true or false"),
        ({"bos_token_id": None, "add_bos_token": True}, ModelFileError, "names no BOS token"),
        ({"model": "llama"}, ModelFileError, "scores is missing"),
        ({"model": "llama", "scores": [0.0] * 18}, ModelFileError, "neither byte tokens nor an unknown token"),
    ],
)
def test_refusals(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    if changes.get("model") == "llama":
        changes = {**changes, "unknown_token_id": None}
    with pytest.raises(error) as found:
        load_tokenizer(small(**changes))
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_a_merge_of_unknown_tokens_is_found_when_it_is_needed() -> None:
    ours = load_tokenizer(small(merges=["a b", "ab zz"]))
    with pytest.raises(ModelFileError, match="names a token that the vocabulary lacks"):
        ours.encode("é")


def test_lone_surrogates_are_refused() -> None:
    for ours in (load_tokenizer(small()),):
        with pytest.raises(UsageError, match=r"lone surrogate \(U\+D83E, character 2\)"):
            ours.encode("ab\ud83e")


@pytest.mark.parametrize("token", [-1, 18, 10**9])
def test_ids_out_of_range(token: int) -> None:
    with pytest.raises(UsageError, match="ids run from 0 to 17"):
        load_tokenizer(small()).decode([token])


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 30), st.floats(), st.text(max_size=5), st.just("llama")),
    lambda inner: st.lists(inner, max_size=5),
)


@settings(max_examples=300)
@given(key=st.sampled_from([k for k in small()] + [P + "scores", P + "unknown_token_id"]), value=values, s=text)
def test_damaged_metadata(key: str, value: Any, s: str) -> None:
    """Whatever one key holds: a vocabulary that works, or one line of error."""
    metadata = copy.copy(small())
    metadata[key] = value
    try:
        ours = load_tokenizer(metadata)
        ours.decode(ours.encode(s, bos=True, special=True))
    except HerderError as error:
        assert "\n" not in str(error)


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_tables(data: st.DataObject) -> None:
    spelling = st.text("abcs<>|[]d ▁é", max_size=4)
    tokens = data.draw(st.lists(spelling, min_size=1, max_size=12))
    metadata = {
        P + "model": data.draw(st.sampled_from(["gpt2", "llama"])),
        P + "pre": data.draw(st.sampled_from(["default", "llama-bpe", "tekken"])),
        P + "tokens": tokens,
        P + "token_type": data.draw(st.lists(st.integers(0, 7), min_size=len(tokens), max_size=len(tokens))),
        P + "merges": data.draw(st.lists(st.tuples(spelling, spelling).map(" ".join), max_size=6)),
        P + "scores": [0.0] * len(tokens),
        P + "unknown_token_id": 0,
    }
    try:
        ours = load_tokenizer(metadata)
        ids = ours.encode("abc <s> é[d]", special=True)
        assert all(0 <= i < len(tokens) for i in ids)
        ours.decode(ids)
    except HerderError as error:
        assert "\n" not in str(error)


def test_the_file_of_the_default_model(smollm: Tokenizer, smollm2: Path) -> None:
    assert (smollm.name, smollm.vocab_size) == ("bpe/smollm", 49152)
    assert (smollm.bos_id, smollm.eos_id, smollm.add_bos) == (1, 2, False)
    assert smollm.stop_ids == {0, 2}
    assert len(smollm.special_ids) == 17
    with GGUF(smollm2) as file:
        assert [smollm.token(i) for i in range(49152)] == list(file.metadata[P + "tokens"])
    assert smollm.encode("<|im_start|>", special=True) == [1]
    assert smollm.special_ids.isdisjoint(smollm.encode("<|im_start|>system<|endoftext|>"))
