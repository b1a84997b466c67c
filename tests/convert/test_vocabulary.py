"""Real vocabularies written in every format encode as before: Llama 3's (tiktoken) and Mistral's (SentencePiece)."""

from __future__ import annotations

import json
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest

from herder.convert import tokenizer_files, vocabulary
from herder.convert.vocabulary import Words
from herder.core.errors import UnsupportedModel
from herder.text.load import load_tokenizer
from herder.text.tokenizer import Kind, Tokenizer
from herder.weights.gguf import GGUF
from herder.weights.write_gguf import write_gguf
from tests.text.texts import FRAGMENTS, LONG
from tests.text.vocabularies import mistral_file, package
from tests.tiny_vocabulary import MERGES, write_tokenizer

FILES = {
    "llama3": lambda: package("llama_models") / "llama3/tokenizer.model",
    "mistral": lambda: mistral_file("tokenizer.model.v1"),
}
TEXTS = (*FRAGMENTS, *(text[:120] for text in LONG), "The llama's  wool, 2024:\n\tsoft & warm.")


class Model:
    """As much of ModelFiles as a vocabulary's reader asks for."""

    def __init__(self, kind: str, path: Path, metadata: Any = None) -> None:
        self.kind, self.path, self.metadata = kind, path, metadata
        self.bos = self.eos = None
        self.stop_token_ids: frozenset[int] = frozenset()


def words_of(path: Path) -> Words:
    return vocabulary.read_words(Model("safetensors", path))  # type: ignore[arg-type]


@pytest.fixture(params=FILES)
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with one tokenizer.model."""
    (tmp_path / "original").mkdir()
    shutil.copy(FILES[request.param](), tmp_path / "original/tokenizer.model")
    return tmp_path / "original"


def through_gguf(words: Words, path: Path, vocab: int) -> Any:
    with open(path, "wb") as file:
        write_gguf(file, tokenizer_files.gguf_vocabulary(words, vocab, {"default": "x"}), [], lambda _: None)
    with GGUF(path) as found:
        return found.metadata


def same(ours: Tokenizer, theirs: Tokenizer) -> None:
    assert (ours.bos_id, ours.eos_id, ours.special.add_bos) == (theirs.bos_id, theirs.eos_id, theirs.special.add_bos)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), repr(text[:40])


@pytest.mark.slow
def test_every_format_encodes_as_the_original(original: Path, tmp_path: Path) -> None:
    """tokenizer.model -> tokenizer.json or tokenizer.model, -> GGUF; GGUF -> tokenizer.json and back to the first file,
    which for tiktoken is the same bytes."""
    reference, words = load_tokenizer(original), words_of(original)
    metadata = through_gguf(words, tmp_path / "v.gguf", len(words.tokens) + 5)
    same(load_tokenizer(metadata), reference)
    assert load_tokenizer(metadata).special.stops == reference.special.stops
    back = vocabulary.read_words(Model("gguf", tmp_path / "v.gguf", metadata))  # type: ignore[arg-type]
    name, data = tokenizer_files.hf_vocabulary(back)
    target = tmp_path / "hf"
    target.mkdir()
    (target / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    settings = tokenizer_files.hf_settings(back, {"default": "x"})
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    same(load_tokenizer(target), reference)
    assert settings["chat_template"] == "x"
    if words.kind == "bpe":
        assert tokenizer_files.tiktoken_model(words_of(target)) == (original / "tokenizer.model").read_bytes()
    else:
        again = words_of(target)
        assert (again.tokens, again.kinds, again.scores) == (words.tokens, words.kinds, words.scores)


@pytest.mark.oracle
def test_sentencepiece_reads_the_model_that_is_written(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    path = tmp_path / "m"
    path.mkdir()
    shutil.copy(FILES["mistral"](), path / "tokenizer.model")
    ours = SentencePieceProcessor(model_proto=tokenizer_files.spm_model(words_of(path)))
    theirs = SentencePieceProcessor(model_file=str(FILES["mistral"]()))
    assert (ours.vocab_size(), ours.bos_id(), ours.eos_id(), ours.unk_id()) == (32000, 1, 2, 0)
    for text in TEXTS:
        if "\x00" not in text:
            assert ours.encode(text) == theirs.encode(text), repr(text[:40])


def tiny(directory: Path, **changes: Any) -> Path:
    directory.mkdir()
    write_tokenizer(directory, 288, None)
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"] |= changes.pop("model", {})
    path.write_text(json.dumps(data | changes))
    return directory


def test_holes_and_spare_rows_are_filled(tmp_path: Path) -> None:
    words = words_of(tiny(tmp_path / "t"))
    assert words.pre == "gpt-2"
    assert words.merges == list(MERGES)
    words.tokens[287] = b""
    metadata = tokenizer_files.gguf_vocabulary(words, 290, {})
    assert metadata["tokenizer.ggml.tokens"][287:] == [b"[PAD287]", b"[PAD288]", b"[PAD289]"]
    assert metadata["tokenizer.ggml.token_type"][286:] == array("i", [1, 5, 5, 5])
    assert words.kinds == dict.fromkeys(range(3), Kind.CONTROL)


@pytest.mark.parametrize(("changes", "message"), [
    ({"normalizer": {"type": "NFC"}}, r"normalizes text \(NFC\), which GGUF cannot say"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}},
     "cuts words by x, for which GGUF has no name"),
    ({"model": {"merges": [["a", " b"]], "vocab": {"a": 300, " b": 301, "a b": 302}}}, "merges of tokens with spaces"),
])  # fmt: skip
def test_what_gguf_cannot_say_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    directory = tiny(tmp_path / "t", **changes)
    with pytest.raises(UnsupportedModel, match=message):
        vocabulary._from_json(directory / "tokenizer.json", load_tokenizer(tiny(tmp_path / "ok")).special)


def test_metas_format_has_only_metas_vocabularies(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="neither Llama 3's nor Llama 4's"):
        tokenizer_files.tiktoken_model(words_of(tiny(tmp_path / "t")))
