"""OpenAI's own client and the default model: what a program that leaves the paid API gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pydantic
import pytest

import herder
from tests.serve.live import live


class City(pydantic.BaseModel):
    name: str
    country: str


@pytest.fixture(scope="module")
def client(smollm2: Path) -> Iterator[openai.OpenAI]:
    with (
        live(herder.load(smollm2, context=1024), names=("gpt-4o-mini",)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def asked(question: str) -> dict[str, object]:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": question}]
    return {"model": "gpt-4o-mini", "messages": messages, "temperature": 0}


def test_chat(client: openai.OpenAI) -> None:
    said = asked("What is the capital of France?") | {"max_completion_tokens": 24}
    answer = client.chat.completions.create(**said).choices[0]  # type: ignore[call-overload]
    assert "Paris" in answer.message.content and answer.finish_reason == "stop"
    with client.chat.completions.stream(**said) as stream:  # type: ignore[arg-type]
        text = "".join([event.delta for event in stream if event.type == "content.delta"])
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == answer.message.content


def test_typed_answers(client: openai.OpenAI) -> None:
    said = asked("Name the capital of France, as JSON with its name and its country.")
    answer = client.chat.completions.parse(**said, response_format=City, max_tokens=64)  # type: ignore[arg-type]
    assert answer.choices[0].message.parsed is not None and answer.choices[0].message.parsed.name == "Paris"


def test_log_likelihood(client: openai.OpenAI) -> None:
    """As programs that evaluate models ask for it: the prompt's own log-probabilities."""

    def likelihood(text: str) -> float:
        found = client.completions.create(model="gpt-4o-mini", prompt=text, echo=True, logprobs=0, max_tokens=0)
        logprobs = found.choices[0].logprobs
        assert found.choices[0].text == text and logprobs is not None and logprobs.token_logprobs is not None
        assert "".join(logprobs.tokens or []).endswith(text)
        return sum(value for value in logprobs.token_logprobs if value is not None)

    assert likelihood("The capital of France is Paris") > likelihood("The capital of France is Oslo")


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by a quarter point."]
    cat, kitten, rates = (one.embedding for one in client.embeddings.create(model="gpt-4o-mini", input=texts).data)

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert similarity(cat, kitten) > similarity(cat, rates)
