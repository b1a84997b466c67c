"""The default model on the torch runtime, in float32: the reference's greedy tokens, and the native core's answers.

Through herder.load, as a user has it: the engine, its prefix cache and chunked prefill included.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import herder
from herder.llm import LLM
from tests.oracle.test_golden import GOLDEN

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

COUNT = 24  # tokens of an answer


@pytest.fixture(scope="module")
def torch_llm() -> Iterator[LLM]:
    with herder.load("smollm2", runtime="torch", device="cpu", dtype="float32", context=512) as llm:
        yield llm


@pytest.fixture(scope="module")
def native_llm() -> Iterator[LLM]:
    with herder.load("smollm2", dtype="float32", context=512) as llm:
        yield llm


def test_greedy_answers_are_the_references(torch_llm: LLM) -> None:
    for answer in (GOLDEN["greedy"][0], GOLDEN["greedy"][-1]):
        assert min(answer["margins"][:COUNT]) > 1e-3  # no near-tie that rounding could turn
        completion = torch_llm.generate(answer["prompt_ids"], max_tokens=COUNT, temperature=0.0, stop_tokens=())
        assert list(completion.tokens) == answer["tokens"][:COUNT]


def test_a_creative_answer_is_the_native_cores(torch_llm: LLM, native_llm: LLM) -> None:
    """The same sampler, the same seed, logits that differ in the sixth digit."""
    options = {"max_tokens": COUNT, "temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 5}
    asked = [{"role": "user", "content": "Tell me about a small town by the sea."}]
    mine, theirs = (llm.chat(asked, **options) for llm in (torch_llm, native_llm))
    assert mine.text == theirs.text and mine.tokens == theirs.tokens


def test_logits_are_the_native_cores(torch_llm: LLM, native_llm: LLM) -> None:
    ids = GOLDEN["greedy"][0]["prompt_ids"] + GOLDEN["greedy"][0]["tokens"]
    np.testing.assert_allclose(torch_llm.logits(ids), native_llm.logits(ids), atol=2e-3)
