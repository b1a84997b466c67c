"""`tokenizer.json`: made by transformers and `tokenizers` from real vocabularies; the library itself is the oracle."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.text.load import load_tokenizer
from herder.text.splits import LLAMA3
from herder.text.tokenizer import Tokenizer
from tests.text.texts import FRAGMENTS, LONG, text
from tests.text.vocabularies import mistral_file, package


def library(path: Path) -> Any:
    """The file as `tokenizers` reads it, told not to see special tokens in text."""
    from tokenizers import Tokenizer as Library

    found = Library.from_file(str(path))
    found.encode_special_tokens = True
    return found


def equal(ours: Tokenizer, reference: Any, special: Any = None) -> None:
    def check(s: str) -> None:
        assert ours.encode(s) == reference.encode(s, add_special_tokens=False).ids
        if special is not None:
            assert ours.encode(s, special=True) == special.encode(s, add_special_tokens=False).ids

    settings(max_examples=200)(given(s=text)(check))()
    for s in (*FRAGMENTS, *LONG, " a", "  a", "<s>a", "<s> a", "a<s>b </s> c", "a<tool>b", "<tool> b"):
        check(s)


def parsing(path: Path) -> Any:
    """The file as `tokenizers` reads it by default: special tokens in text are parsed."""
    from tokenizers import Tokenizer as Library

    return Library.from_file(str(path))


@pytest.fixture(scope="module")
def llama3_json(tmp_path_factory: pytest.TempPathFactory, llama3: Tokenizer) -> Path:
    """Meta's Llama 3 vocabulary as transformers converts it."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(
        vocab_file=str(package("llama_models") / "llama3/tokenizer.model"),
        pattern=LLAMA3,
        extra_special_tokens=list(llama3.control_tokens()),
    )
    folder = tmp_path_factory.mktemp("llama3")
    converter.converted().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>"}, "add_bos_token": True})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [128001, 128008, 128009]}))
    return folder


@pytest.mark.oracle
def test_llama3_converted_equals_meta(llama3_json: Path, llama3: Tokenizer) -> None:
    ours = load_tokenizer(llama3_json)
    assert ours.control_tokens() == llama3.control_tokens()
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.add_bos) == (128256, 128000, 128009, True)
    assert ours.stop_ids == llama3.stop_ids
    for s in (*FRAGMENTS, *LONG):
        assert ours.encode(s) == llama3.encode(s), repr(s[:40])
        assert ours.decode(ours.encode(s)) == s
    equal(ours, library(llama3_json / "tokenizer.json"), parsing(llama3_json / "tokenizer.json"))


@pytest.mark.oracle
@pytest.mark.parametrize(("legacy", "bos"), [(True, True), (False, False)])
def test_sentencepiece_converted(tmp_path: Path, legacy: bool, bos: bool) -> None:
    """Two conventions for the space at the beginning: Metaspace "always" (legacy) and "first"."""
    from transformers import LlamaTokenizer

    shutil.copy(mistral_file("tokenizer.model.v1"), tmp_path / "tokenizer.model")
    reference = LlamaTokenizer.from_pretrained(tmp_path, legacy=legacy, add_bos_token=bos)
    reference.save_pretrained(tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    assert (ours.bos_id, ours.eos_id, ours.special_ids) == (1, 2, {0, 1, 2})
    assert reference.encode(" hi") == ours.encode(" hi", bos=ours.add_bos)
    assert ours.add_bos == bos
    equal(ours, library(tmp_path / "out/tokenizer.json"), parsing(tmp_path / "out/tokenizer.json"))


# Small files, made here -----------------------------------------------------------------------------------------------
def spm_like(normalizer: Any, pre_tokenizer: Any) -> dict[str, Any]:
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *"abcdehlorstw",
        "▁a",
        "▁b",
        "ab",
        "▁ab",
    ]
    merges = [["▁", "a"], ["▁", "b"], ["a", "b"], ["▁a", "b"], ["▁", "ab"]]
    special = [
        {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for i in range(3)
    ]
    tool = {**special[0], "id": len(pieces), "content": "<tool>", "special": False}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "added_tokens": [*special, tool],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }


ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, ESCAPE]}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def write(folder: Path, data: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (PREPEND, None),
        (ESCAPE, None),
        (None, metaspace("always")),
        (None, metaspace("first")),
        (None, metaspace("never")),
    ],
)
def test_every_convention_for_the_first_space(tmp_path: Path, normalizer: Any, pre_tokenizer: Any) -> None:
    path = write(tmp_path, spm_like(normalizer, pre_tokenizer))
    ours = load_tokenizer(path)
    equal(ours, library(path), parsing(path))
    reference = parsing(path)
    rng = random.Random(0)
    parts = ["<s>", "</s>", "<tool>", " ", "a", "b", " ab", "é"]
    for _ in range(300):
        s = "".join(rng.choice(parts) for _ in range(rng.randint(0, 6)))
        assert ours.encode(s, special=True) == reference.encode(s, add_special_tokens=False).ids, s


def test_tokens_that_are_not_special_match_in_any_text(tmp_path: Path) -> None:
    ours = load_tokenizer(write(tmp_path, spm_like(PREPEND, None)))
    tool = ours.id_of("<tool>")
    assert tool in ours.encode("a<tool>b") and not ours.is_control(tool)
    assert ours.decode([tool]) == "<tool>"
    assert 1 not in ours.encode("<s>")


def refused(**changes: Any) -> dict[str, Any]:
    data = spm_like(PREPEND, None)
    data["model"] |= {key: value for key, value in changes.items() if key not in data}
    return data | {key: value for key, value in changes.items() if key in data}


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (refused(type="Unigram"), UnsupportedModel, "of kind Unigram: only BPE"),
        (refused(type="WordPiece"), UnsupportedModel, "of kind WordPiece: only BPE"),
        (refused(dropout=0.1), UnsupportedModel, "sets dropout"),
        (refused(end_of_word_suffix="</w>"), UnsupportedModel, "sets end_of_word_suffix"),
        (refused(decoder={"type": "WordPiece"}), UnsupportedModel, "decodes by WordPiece"),
        (refused(decoder=None), UnsupportedModel, "decodes by nothing"),
        (refused(normalizer={"type": "NFC"}), UnsupportedModel, "has the normalizer NFC"),
        (refused(pre_tokenizer={**metaspace("first"), "split": True}), UnsupportedModel, "Metaspace"),
        (refused(pre_tokenizer={"type": "Whitespace"}), UnsupportedModel, "has the pre-tokenizer Whitespace"),
        (refused(merges=[["a", "zz"]]), ModelFileError, "names a token that the vocabulary lacks"),
        (refused(merges=["a b c"]), ModelFileError, "is not a tokenizer, or is damaged"),
        (refused(vocab={"a": 0, "b": 0}), ModelFileError, "gives the id 0 to two tokens"),
        (refused(added_tokens=[{"id": 5, "content": "<x>", "lstrip": True}]), UnsupportedModel, "has lstrip on '<x>'"),
        (refused(added_tokens=[{"id": 10**12, "content": "<x>"}]), ModelFileError, "ids up to"),
        (refused(unk_token="<none>"), ModelFileError, "damaged"),
        ([], ModelFileError, "is not a JSON object"),
        ({}, ModelFileError, "is not a tokenizer, or is damaged"),
        ({"model": None}, ModelFileError, "is not a tokenizer, or is damaged"),
    ],
)
def test_refusals(tmp_path: Path, data: Any, error: type[HerderError], message: str) -> None:
    with pytest.raises(error) as found:
        load_tokenizer(write(tmp_path, data)) if data else load_hf(write(tmp_path, data))
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def load_hf(path: Path) -> Tokenizer:
    from herder.text.hf_json import hf_tokenizer

    return hf_tokenizer(path)


def test_damaged_files(tmp_path: Path) -> None:
    """Bytes lost, doubled or changed: a tokenizer, or one line of error."""
    whole = json.dumps(spm_like(PREPEND, metaspace("first")), ensure_ascii=False).encode()
    rng = random.Random(5)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 2)) if rng.random() < 0.5 else b'"'
        path = tmp_path / "tokenizer.json"
        path.write_bytes(data)
        try:
            ours = load_hf(path)
            ours.decode(ours.encode("ab <s> é"))
        except HerderError as error:
            assert "\n" not in str(error)


def test_a_generation_config_with_ids_out_of_range(tmp_path: Path) -> None:
    path = write(tmp_path, spm_like(PREPEND, None))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 99999]}')
    with pytest.raises(ModelFileError, match="not in the vocabulary"):
        load_tokenizer(path)
