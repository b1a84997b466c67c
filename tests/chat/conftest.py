"""The vocabularies of tests/text, for the chat formats."""

from __future__ import annotations

from tests.text.conftest import llama3, llama4, smollm, spm  # noqa: F401
