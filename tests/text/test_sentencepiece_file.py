"""`.model` files: the parser against hostile bytes, and vocabularies that sentencepiece's own trainer makes."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.text.load import load_tokenizer
from herder.text.sentencepiece import fields
from herder.text.tokenizer import Tokenizer
from tests.text.texts import FRAGMENTS, LONG, text
from tests.text.vocabularies import mistral_file

CORPUS = ["the cat sat on the mat", "the dog ate   the hat", "a b c ab abc", "x = [1, 2, 3]", "héllo wörld"] * 20


def train(path: Path, **options: Any) -> tuple[Path, Any]:
    """A small model by sentencepiece's trainer, and sentencepiece's reading of it."""
    import sentencepiece

    model = io.BytesIO()
    defaults = {
        "vocab_size": 330,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **(defaults | options))
    path.write_bytes(model.getvalue())
    return path, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def equal(ours: Tokenizer, reference: Any) -> None:
    @settings(max_examples=200)
    @given(s=st.one_of(text, st.text("abc <>the xyé ▁", max_size=20)))
    def check(s: str) -> None:
        assert ours.encode(s) == reference.encode(s)

    check()
    for s in (*FRAGMENTS, *LONG, *CORPUS):
        assert ours.encode(s) == reference.encode(s), repr(s[:40])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user_defined_symbols": ["the", "<sep>", "ab", "a  b", "▁▁"]},
        {"add_dummy_prefix": False},
        {"byte_fallback": False},
        {"byte_fallback": False, "user_defined_symbols": ["é"]},
        {"control_symbols": ["[INST]", "<ab>"], "bos_id": 3, "eos_id": 0, "unk_id": 1, "pad_id": 2},
        {"bos_piece": "<begin>", "eos_piece": "<end>", "split_by_whitespace": False},
    ],
)
def test_trained_models(tmp_path: Path, options: dict[str, Any]) -> None:
    path, reference = train(tmp_path / "tokenizer.model", **options)
    ours = load_tokenizer(path)
    equal(ours, reference)
    assert ours.vocab_size == reference.vocab_size()
    roles = (reference.bos_id(), reference.eos_id(), reference.unk_id())
    assert (ours.bos_id, ours.eos_id, ours.special.unknown) == tuple(None if i < 0 else i for i in roles)
    assert ours.stop_ids == {reference.eos_id()}
    assert ours.special_ids == {i for i in range(ours.vocab_size) if reference.is_control(i) or reference.is_unknown(i)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "kind unigram: only bpe"),
        ({"model_type": "char"}, "kind char: only bpe"),
        ({"model_type": "word"}, "kind word: only bpe"),
        ({"normalization_rule_name": "nmt_nfkc"}, "a normalization table"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path, _ = train(tmp_path / "tokenizer.model", **options)
    with pytest.raises(UnsupportedModel, match=message):
        load_tokenizer(path)


def test_a_merge_of_a_character_that_is_no_piece(tmp_path: Path) -> None:
    """SentencePiece joins any two neighbours whose concatenation is a piece; the characters need not be pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "ab", "abc", "▁a"]
    types = [2, 3, 3, *[6] * 256, *[1] * 5]
    proto = b"".join(
        message(1, message(1, piece.encode()) + b"\x15" + struct.pack("<f", -i) + number(3, kind))
        for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
    )
    proto += message(2, number(3, 2) + number(35, 1)) + message(3, number(3, 0) + number(4, 0))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto)
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=proto)
    ours = load_tokenizer(path)
    for s in ("abc", "ab", "b", "c", "cab", "abcb", "a b c", "bbb", "bébab"):
        assert ours.encode(s) == reference.encode(s), s
    assert ours.encode("ab") == [261]


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# Hostile bytes --------------------------------------------------------------------------------------------------------
def attempt(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        ours = load_tokenizer(path)
        ours.decode(ours.encode("the <s> é", bos=True))
    except HerderError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path, _ = train(tmp_path_factory.mktemp("spm") / "tokenizer.model", vocab_size=290)
    return path.read_bytes()


@settings(max_examples=300)
@given(data=st.data())
def test_flipped_bytes(small_model: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    damaged = bytearray(small_model)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    attempt(tmp_path_factory.getbasetemp() / "flipped.model", bytes(damaged))


def test_every_truncation(small_model: bytes, tmp_path: Path) -> None:
    for length in range(0, len(small_model), 7):
        attempt(tmp_path / "short.model", small_model[:length])


@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    attempt(tmp_path_factory.getbasetemp() / "any.model", data)


@pytest.mark.parametrize("data", [b"\xff" * 11, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x02\x00", b"\x09\x00"])
def test_damaged_messages(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        list(fields(data))


def test_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"this is text, not a model")
    with pytest.raises(ModelFileError, match="is not a SentencePiece model"):
        load_tokenizer(path)


def test_the_real_file_is_read_whole() -> None:
    ours = load_tokenizer(mistral_file("mistral_instruct_tokenizer_240323.model.v3"))
    assert (ours.name, ours.vocab_size, ours.bos_id, ours.eos_id) == ("spm", 32768, 1, 2)
    assert len(ours.special_ids) == 751
    assert ours.encode("[INST][REFERENCE_DOC_1]")[-1] == ours.id_of("[REFERENCE_DOC_1]")
    assert ours.id_of("[INST]") not in ours.encode("[INST]")
