"""Tokens that files call words or pieces, but that only ids may become; and the versions of Mistral's files."""

from __future__ import annotations

import json
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest

from herder.core.errors import ModelFileError
from herder.text.load import load_tokenizer
from herder.text.tokenizer import Kind, Tokenizer
from tests.text.vocabularies import mistral_file

BAR = "\uff5c"
TURNS = (f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", "<|im_start|>")
WORDS = ("<think>", "<tool_call>", "<|a b|>", f"<{BAR}{BAR}>")
PIECES = ("▁<PRE", "▁<SUF", "▁<MID", "▁<E", "▁<EOT", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<step>")


def letters() -> list[str]:
    from herder.text.bpe import byte_alphabet

    return list(byte_alphabet())


def hf(folder: Path) -> Tokenizer:
    """DeepSeek's way: the tokens of its turns are added ones, but not special."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE({token: i for i, token in enumerate(letters())}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_tokens([AddedToken(token, special=False, normalized=False) for token in (*TURNS, *WORDS)])
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def gguf(folder: Path) -> Tokenizer:
    tokens = [*letters(), *TURNS, *WORDS]
    prefix = "tokenizer.ggml."
    return load_tokenizer(
        {
            prefix + "model": "gpt2",
            prefix + "pre": "llama-bpe",
            prefix + "tokens": tokens,
            prefix + "token_type": array("i", [1] * 256 + [Kind.USER_DEFINED] * (len(tokens) - 256)),
            prefix + "merges": [],
        }
    )


@pytest.mark.parametrize("make", [hf, gguf])
def test_the_tokens_of_turns_come_from_ids_only(tmp_path: Path, make: Any) -> None:
    ours = make(tmp_path)
    assert ours.control_tokens().keys() == set(TURNS)
    everything = "a".join((*TURNS, *WORDS))
    ids = ours.encode(everything)
    assert not ours.special_ids & set(ids) and ours.decode(ids) == everything
    assert {ours.id_of(word) for word in WORDS[:2]} <= set(ids)  # words are words
    assert ours.encode(TURNS[0], special=True) == [ours.id_of(TURNS[0])]


def metadata(pieces: list[tuple[str, float, int]]) -> dict[str, Any]:
    prefix = "tokenizer.ggml."
    return {
        prefix + "model": "llama",
        prefix + "tokens": [piece for piece, _, _ in pieces],
        prefix + "scores": array("f", [score for _, score, _ in pieces]),
        prefix + "token_type": array("i", [kind for _, _, kind in pieces]),
    }


def test_code_llamas_pieces_come_from_ids_only(tmp_path: Path) -> None:
    """Its own tokenizer makes " <PRE>" of a text the token; the file marks it as an ordinary piece."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(mistral_file("tokenizer.model.v1").read_bytes())
    lowest = min(piece.score for piece in model.pieces)
    for i, name in enumerate(PIECES, 1):
        model.pieces.add(piece=name, score=lowest - i)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    whole = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    reference = SentencePieceProcessor(model_proto=model.SerializeToString())
    text = "x <PRE> y <MID>"
    assert reference.piece_to_id("▁<PRE>") in reference.encode(text)
    for ours in (load_tokenizer(tmp_path), load_tokenizer(metadata(whole))):
        ids = ours.encode(text)
        assert not ours.special_ids & set(ids) and ours.decode(ids) == text
        assert ours.is_control(32005) and ours.token(32005) == "▁<PRE>"
        assert ours.stop_ids == {2, reference.piece_to_id("▁<EOT>")}
        for plain in ("x < PRE", "a <b> c", "<s> <E"):
            assert ours.encode(plain) == reference.encode(plain)


def test_a_text_that_continues_another_gets_no_space(spm: Tokenizer, llama3: Tokenizer) -> None:
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(mistral_file("mistral_instruct_tokenizer_240323.model.v3")))
    for text in ("Hello", " Hello", "):\n  pass", "é", "1 2", "", "[REFERENCE_DOC_1]x"):
        assert spm.encode(text, space=False) == reference.encode("☺" + text)[2:]
        assert llama3.encode(text, space=False) == llama3.encode(text)


# Versions ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "copied", "version"),
    [
        ("mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model.v2", "v2"),
        ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3", "v3"),
        ("mistral_instruct_tokenizer_241114.model.v7m1", "tokenizer.model.v7m1", "v7"),
        ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model", None),
        ("tekken_240911.json", "tekken.json", "v3"),
    ],
)
def test_the_version_is_in_the_name_or_in_the_file(tmp_path: Path, name: str, copied: str, version: str | None) -> None:
    shutil.copy(mistral_file(name), tmp_path / copied)
    (tmp_path / "params.json").write_text(json.dumps({}))
    assert load_tokenizer(tmp_path).version == version


def test_of_several_files_the_versioned_one(tmp_path: Path) -> None:
    shutil.copy(mistral_file("tokenizer.model.v1"), tmp_path / "tokenizer.model")
    shutil.copy(mistral_file("mistral_instruct_tokenizer_240323.model.v3"), tmp_path / "tokenizer.model.v3")
    assert load_tokenizer(tmp_path).vocab_size == 32768
    shutil.copy(mistral_file("mistral_instruct_tokenizer_240216.model.v2"), tmp_path / "tokenizer.model.v2")
    with pytest.raises(ModelFileError, match=r"holds tokenizer.model.v2 and tokenizer.model.v3: leave only"):
        load_tokenizer(tmp_path)
