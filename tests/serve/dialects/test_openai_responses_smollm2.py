"""OpenAI's own client and the default model: a conversation that the server remembers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

import herder
from herder.serve.config import Config
from tests.serve.live import live


class City(pydantic.BaseModel):
    name: str
    country: str


@pytest.fixture(scope="module")
def client(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    config = replace(Config(), responses=str(tmp_path_factory.mktemp("responses") / "responses.db"))
    with (
        live(herder.load(smollm2, context=1024), config=config, names=("gpt-4o-mini",)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def test_a_conversation(client: Any) -> None:
    said: dict[str, Any] = {
        "model": "gpt-4o-mini",
        "temperature": 0,
        "max_output_tokens": 32,
        "instructions": "Be brief.",
    }
    first = client.responses.create(input="What is the capital of France?", **said)
    assert "Paris" in first.output_text and first.status == "completed"
    with client.responses.stream(
        input="Which country is that city in?", previous_response_id=first.id, **said
    ) as stream:
        text = "".join([event.delta for event in stream if event.type == "response.output_text.delta"])
        final = stream.get_final_response()
    assert "France" in text and final.output_text == text
    assert final.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


def test_typed_answers(client: Any) -> None:
    found = client.responses.parse(
        model="gpt-4o-mini",
        input="Name the capital of France, as JSON with its name and its country.",
        text_format=City,
        temperature=0,
        max_output_tokens=64,
    )
    assert found.output_parsed is not None and found.output_parsed.name == "Paris"
