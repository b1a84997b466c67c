"""The golden figures are still what transformers computes, for these very files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import reference

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((TESTS / "golden/smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Any:
    return reference.from_gguf(smollm2)


def tokenizer_of(path: Path) -> Any:
    from herder.text.gguf_vocab import gguf_tokenizer
    from herder.weights.source import open_model

    with open_model(path) as files:
        return gguf_tokenizer(files.metadata)


@pytest.fixture(scope="module")
def ids(smollm2: Path) -> list[int]:
    text = (TESTS / "data" / GOLDEN["text"]).read_text(encoding="utf-8")
    return list(tokenizer_of(smollm2).encode(text))


def test_the_files_are_those_of_the_figures(smollm2: Path) -> None:
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == GOLDEN["model_sha256"]
    text = TESTS / "data" / GOLDEN["text"]
    assert hashlib.sha256(text.read_bytes()).hexdigest() == GOLDEN["text_sha256"]


def test_the_figures_agree_with_one_another() -> None:
    assert GOLDEN["scored"] == GOLDEN["tokens"] - len(GOLDEN["window_nll"]) >= 50_000
    expected = reference.perplexity(GOLDEN["window_nll"], GOLDEN["scored"])
    assert GOLDEN["perplexity"] == pytest.approx(expected, rel=1e-6)
    for answer in GOLDEN["greedy"]:
        assert len(answer["tokens"]) == len(answer["margins"]) == 64


@pytest.mark.parametrize("answer", [GOLDEN["greedy"][0], GOLDEN["greedy"][-1]], ids=["chat", "plain"])
def test_a_greedy_answer_is_reproduced(model: Any, answer: dict[str, Any]) -> None:
    again = reference.greedy(model, answer["prompt_ids"], 12)
    assert again.tokens == answer["tokens"][:12]
    assert again.margins == pytest.approx(answer["margins"][:12], abs=2e-3)


def test_the_text_becomes_the_ids_that_llama_cpp_gave(ids: list[int], smollm2: Path) -> None:
    assert len(ids) == GOLDEN["tokens"]
    assert hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest() == GOLDEN["ids_sha256"]


def test_the_prompts_become_the_ids_that_llama_cpp_gave(smollm2: Path) -> None:
    tokenizer = tokenizer_of(smollm2)
    for answer in GOLDEN["greedy"]:
        assert list(tokenizer.encode(answer["prompt"], special=True)) == answer["prompt_ids"]


@pytest.mark.parametrize("window", [0, 100, 141])
def test_the_perplexity_of_a_window_is_reproduced(model: Any, ids: list[int], window: int) -> None:
    context = GOLDEN["context"]
    nll = reference.window_nll(model, ids[window * context : (window + 1) * context], context)
    assert nll == pytest.approx([GOLDEN["window_nll"][window]], rel=1e-5)
