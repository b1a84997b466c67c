"""load_tokenizer finds out what it was given."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from herder.core.errors import HerderError, ModelFileError, ModelNotFound, UnsupportedModel, UsageError
from herder.text.load import load_tokenizer
from herder.text.tiktoken import meta_chunks, read_ranks
from herder.text.tokenizer import Tokenizer
from tests.text.vocabularies import mistral_file, package

TIKTOKEN = "llama3/tokenizer.model"


@pytest.mark.parametrize(
    ("source", "name", "kind"),
    [
        (package("llama_models") / "llama3/tokenizer.model", "tokenizer.model", "tiktoken/llama3"),
        (package("llama_models") / "llama4/tokenizer.model", "tokenizer.model", "tiktoken/llama4"),
        (mistral_file("tokenizer.model.v1"), "tokenizer.model", "spm"),
        (mistral_file("tekken_240718.json"), "tekken.json", "tekken"),
    ],
)
def test_a_directory_or_a_file_under_any_name(tmp_path: Path, source: Path, name: str, kind: str) -> None:
    shutil.copy(source, tmp_path / name)
    assert load_tokenizer(tmp_path).name == kind
    (tmp_path / name).rename(tmp_path / "renamed")
    assert load_tokenizer(tmp_path / "renamed").name == kind


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        (None, b"", ModelNotFound, "none of tokenizer.json, tokenizer.model, tekken.json is there"),
        ("tokenizer.model", b"", ModelFileError, "is empty"),
        ("tokenizer.model", b"GGUF\x03", UsageError, "is a GGUF file"),
        ("tokenizer.model", b"YQ== 0\nYg== 1\n", UnsupportedModel, "has 2 tokens: only Llama 3's"),
        ("tokenizer.model", b"YQ== 0\nYg== 2\n", ModelFileError, "its ranks are not 0 to 1"),
        ("tokenizer.model", b"YQ== 0\nYg==\n", ModelFileError, "damaged"),
        ("tokenizer.model", b"YQ== 0\n!!!! 1\n", ModelFileError, "is not a tiktoken vocabulary"),
        ("tokenizer.json", b"{", ModelFileError, "is not JSON"),
        ("tokenizer.json", b"{}", ModelFileError, "is not a tokenizer"),
        ("tokenizer.json", b'{"a":' * 100_000, ModelFileError, "is not JSON"),
        ("tekken.json", b"{}", ModelFileError, "is not a tekken file"),
        ("tekken.json", b"[]", ModelFileError, "not a SentencePiece model"),
    ],
)
def test_refusals(tmp_path: Path, name: str | None, data: bytes, error: type[HerderError], message: str) -> None:
    if name is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error) as found:
        load_tokenizer(tmp_path)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="No such file"):
        load_tokenizer(tmp_path / "nothing")


def test_tekken_refusals(tmp_path: Path) -> None:
    whole = json.loads(mistral_file("tekken_240718.json").read_bytes())
    whole["vocab"] = whole["vocab"][:1000]
    whole["config"] |= {"default_vocab_size": 2000, "default_num_special_tokens": 1000}

    def attempt(**changes: Any) -> Tokenizer:
        data = {**whole, "config": {**whole["config"], **changes.pop("config", {})}, **changes}
        (tmp_path / "tekken.json").write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))
        return load_tokenizer(tmp_path)

    assert attempt().vocab_size == 2000
    assert attempt(special_tokens=None).id_of("[INST]") == 3
    with pytest.raises(UnsupportedModel, match="a pattern of its own: 'x'"):
        attempt(config={"pattern": "x"})
    with pytest.raises(ModelFileError, match="lists no special tokens"):
        attempt(config={"version": "v11"}, special_tokens=...)
    with pytest.raises(ModelFileError, match="do not fit"):
        attempt(config={"default_vocab_size": 5000})
    with pytest.raises(ModelFileError, match="not in order of rank"):
        attempt(vocab=whole["vocab"][::-1])
    with pytest.raises(ModelFileError, match="holds a token twice"):
        attempt(vocab=[{**token, "token_bytes": "YQ=="} for token in whole["vocab"]])


def test_damaged_tiktoken_files(tmp_path: Path) -> None:
    whole = (package("llama_models") / TIKTOKEN).read_bytes()[:20_000]
    rng = random.Random(3)
    for _ in range(200):
        data = bytearray(whole[: rng.randrange(len(whole))])
        for _ in range(rng.randint(0, 3)):
            data[rng.randrange(len(data) or 1) : 0] = rng.randbytes(1)
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(HerderError) as found:
            load_tokenizer(tmp_path)
        assert "\n" not in str(found.value)


def test_ranks_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"Yg== 1\nYQ== 0\nYWI= 2")
    assert read_ranks(path) == [b"a", b"b", b"ab"]


def test_chunks_join_to_the_text() -> None:
    rng = random.Random(7)
    for _ in range(5):
        s = "".join(rng.choice("a ") * rng.randint(1, 60_000) for _ in range(20))
        assert "".join(meta_chunks(s)) == s
