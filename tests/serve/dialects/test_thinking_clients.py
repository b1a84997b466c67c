"""The vendors' own clients against a model that thinks first: thoughts apart from the answer, streamed, left out, and
given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest
from google import genai
from google.genai import types

from tests.serve.live import Live, live
from tests.serve.thinking import SAID, THOUGHT, thinking_llm

USER: Any = {"role": "user", "content": "What is it?"}


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live(thinking_llm(), names=("tiny",)) as running:
        yield running


def test_openai(served: Live) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        found: Any = client.chat.completions.create(model="tiny", messages=[USER])
        message = found.choices[0].message
        assert (message.content, message.reasoning_content) == (SAID, THOUGHT)
        assert 0 < found.usage.completion_tokens_details.reasoning_tokens < found.usage.completion_tokens
        deltas: list[Any] = [
            chunk.choices[0].delta
            for chunk in client.chat.completions.create(model="tiny", messages=[USER], stream=True)
        ]
        assert "".join([getattr(delta, "reasoning_content", None) or "" for delta in deltas]) == THOUGHT
        assert "".join([delta.content or "" for delta in deltas]) == SAID
        hidden = client.chat.completions.create(model="tiny", messages=[USER], extra_body={"include_reasoning": False})
        assert not hasattr(hidden.choices[0].message, "reasoning_content")
        assert hidden.choices[0].message.content == SAID
        again: Any = client.chat.completions.create(model="tiny", messages=[USER, message, USER])
        assert again.choices[0].message.content == SAID, "the client's own object goes back"

        response: Any = client.responses.create(model="tiny", input="What is it?", store=False)
        assert [item.type for item in response.output] == ["reasoning", "message"] and response.output_text == SAID
        assert response.output[0].content[0].text == THOUGHT
        items: Any = [USER, *response.output, USER]
        assert client.responses.create(model="tiny", input=items, store=False).output_text == SAID
        with client.responses.stream(model="tiny", input="What is it?", store=False) as stream:
            thoughts = [event.delta for event in stream if event.type == "response.reasoning_text.delta"]
            assert "".join(thoughts) == THOUGHT and stream.get_final_response().output_text == SAID


def test_anthropic(served: Live) -> None:
    said: Any = {"model": "tiny", "messages": [USER], "max_tokens": 200}
    thinking: Any = {"type": "adaptive", "display": "summarized"}
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        found = client.messages.create(**said, thinking=thinking)
        assert [(block.type, getattr(block, "thinking", None)) for block in found.content] == [
            ("thinking", THOUGHT),
            ("text", None),
        ]
        with client.messages.stream(**said, thinking=thinking) as stream:
            events: list[Any] = list(stream)
            assert "".join([event.thinking for event in events if event.type == "thinking"]) == THOUGHT
            assert "".join([event.text for event in events if event.type == "text"]) == SAID
            assert [block.type for block in stream.get_final_message().content] == ["thinking", "text"]
        [block] = client.messages.create(**said).content
        assert block.type == "text" and block.text == SAID
        turns: Any = [USER, {"role": "assistant", "content": found.content}, USER]
        after = client.messages.create(**{**said, "messages": turns}, thinking=thinking)
        assert after.content[-1].type == "text" and after.content[-1].text == SAID


def test_gemini(served: Live) -> None:
    options = types.HttpOptions(base_url=served.url, api_version="v1beta")
    client = genai.Client(api_key="none", vertexai=False, http_options=options)
    shown = types.GenerateContentConfig(thinking_config=types.ThinkingConfig(include_thoughts=True))

    def parts(found: types.GenerateContentResponse) -> list[tuple[bool, str]]:
        assert found.candidates and found.candidates[0].content
        return [(bool(part.thought), part.text or "") for part in found.candidates[0].content.parts or ()]

    found = client.models.generate_content(model="tiny", contents="What is it?", config=shown)
    assert parts(found) == [(True, THOUGHT), (False, SAID)] and found.text == SAID
    assert found.usage_metadata and (found.usage_metadata.thoughts_token_count or 0) > 0
    chunks = list(client.models.generate_content_stream(model="tiny", contents="What is it?", config=shown))
    pieces = [piece for chunk in chunks for piece in parts(chunk)]
    for thought, text in ((True, THOUGHT), (False, SAID)):
        assert "".join([piece for kind, piece in pieces if kind == thought]) == text
    assert parts(client.models.generate_content(model="tiny", contents="What is it?")) == [(False, SAID)]
    chat = client.chats.create(model="tiny", config=shown)
    assert [chat.send_message("What is it?").text, chat.send_message("And now?").text] == [SAID, SAID]


def test_ollama(served: Live) -> None:
    client = ollama.Client(served.url)
    found = client.chat("tiny", [USER], think=True)
    assert (found.message.content, found.message.thinking) == (SAID, THOUGHT)
    pieces = list(client.chat("tiny", [USER], think=True, stream=True))
    assert "".join([piece.message.thinking or "" for piece in pieces]) == THOUGHT
    assert "".join([piece.message.content or "" for piece in pieces]) == SAID
    quiet = client.chat("tiny", [USER, found.message, USER], think=False)
    assert (quiet.message.content, quiet.message.thinking) == (SAID, None)
