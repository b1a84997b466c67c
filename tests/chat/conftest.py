"""The vocabularies of tests/text, for the chat formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from herder.weights.gguf import GGUF
from tests.text.conftest import llama3, llama4, smollm, spm  # noqa: F401


@pytest.fixture(scope="session")
def smollm_template(smollm2: Path) -> str:
    with GGUF(smollm2) as file:
        return str(file.metadata["tokenizer.chat_template"])
