"""The vocabularies of tests/text, for the chat formats, and two that no package ships, made of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from herder.text.load import load_tokenizer
from herder.text.splits import split_named
from herder.text.tiktoken import llama3_specials, rank_tokenizer, read_ranks
from herder.text.tokenizer import Kind, Special, Tokenizer
from herder.weights.gguf import GGUF
from tests.text.conftest import llama3, llama4, smollm, spm, tekken  # noqa: F401
from tests.text.vocabularies import mistral_file, package

# What Code Llama adds to Llama 2's 32,000 pieces: the parts of four tokens, the tokens, and spare ones.
CODE_PIECES = (
    *("▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "▁<EOT><EOT>"),
    *("▁<EOT><EOT><EOT>", "▁<EOT><EOT><EOT><EOT>", "<spare>", "<step>"),
)


@pytest.fixture(scope="session")
def smollm_template(smollm2: Path) -> str:
    with GGUF(smollm2) as file:
        return str(file.metadata["tokenizer.chat_template"])


@pytest.fixture(scope="session")
def llama2() -> Tokenizer:
    """Mistral's first vocabulary, which is built as Llama 2's: 32,000 pieces, no control tokens but BOS and EOS."""
    return load_tokenizer(mistral_file("tokenizer.model.v1"))


@pytest.fixture(scope="session")
def code_pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The same with Code Llama's 16 pieces, joined by scores below all others', and sentencepiece's reading."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(mistral_file("tokenizer.model.v1").read_bytes())
    lowest = min(piece.score for piece in model.pieces)
    for i, name in enumerate(CODE_PIECES, 1):
        model.pieces.add(piece=name, score=lowest - i)
    path = tmp_path_factory.mktemp("codellama") / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path, sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.fixture(scope="session")
def codellama(code_pieces: tuple[Path, Any]) -> Tokenizer:
    return load_tokenizer(code_pieces[0])


@pytest.fixture(scope="session")
def deepseek() -> Tokenizer:
    """Llama 3's vocabulary with R1-Distill-Llama's names: its file marks <think> as a word and the turns as tokens."""
    ranked = read_ranks(package("llama_models") / "llama3/tokenizer.model")
    names = llama3_specials()
    begin, end, user, assistant, pad = (
        f"<\uff5c{name}\uff5c>" for name in ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "▁pad▁")
    )
    names[:2] = [begin, end]
    names[11:16] = [user, assistant, "<think>", "</think>", pad]
    first = len(ranked)
    kinds = dict.fromkeys(range(first, first + len(names)), Kind.CONTROL)
    kinds |= {first + i: Kind.USER_DEFINED for i in (13, 14)}
    return rank_tokenizer(
        "deepseek",
        split_named("llama3"),
        ranked,
        [*ranked, *map(str.encode, names)],
        kinds,
        Special(bos=first, eos=first + 1, stops=frozenset({first + 1}), add_bos=True),
        first=0,
    )
