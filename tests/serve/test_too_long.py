"""Prompts that cannot fit are refused before they are tokenized, whichever way they come."""

from __future__ import annotations

import re
from typing import Any

import pytest

from herder.core.errors import ContextOverflow
from herder.llm import LLM
from herder.serve.server import Server
from tests.serve.models import LIMITS, fake_llm
from tests.serve.test_app import Client, run

LONG = "herd of llamas " * 5000
SAID = re.compile(r"at least (\d+) tokens, and the context holds (\d+): shorten it")
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    ("/v1/completions", {"prompt": LONG}),
    ("/v1/responses", {"input": LONG, "store": False}),
    ("/v1/embeddings", {"input": [LONG]}),
    ("/v1/score", {"input": LONG}),
    ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4}),
    ("/v1beta/models/tiny:generateContent", {"contents": [{"role": "user", "parts": [{"text": LONG}]}]}),
    ("/api/generate", {"prompt": LONG, "truncate": False}),
    ("/api/embed", {"input": LONG, "truncate": False}),
]


def forbid(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing more than a message's own words is an error of the test."""
    encode = llm.tokenizer.encode

    def watched(text: str, **options: Any) -> list[int]:
        assert len(text) < len(LONG), "it was tokenized"
        return encode(text, **options)

    monkeypatch.setattr(llm.tokenizer, "encode", watched)


def test_no_api_tokenizes_what_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: Client, server: Server) -> None:
        async with server.models.use("tiny") as llm:
            forbid(llm, monkeypatch)
        for path, body in BODIES:
            model = {} if "{" in path or "v1beta" in path else {"model": "tiny"}
            answer = await client.post(path, json={**model, **body})
            found = SAID.search(answer.text)
            assert answer.status_code == 400 and found, (path, answer.text)
            assert LIMITS.context < int(found[1]) < len(LONG) and int(found[2]) == LIMITS.context

    run(test)


def test_what_shall_be_cut_is_tokenized_whole() -> None:
    async def test(client: Client, server: Server) -> None:
        async with server.models.use("tiny") as llm:
            whole = len(llm.tokens(LONG))
        body = {"model": "tiny", "prompt": LONG, "max_tokens": 1, "truncate_prompt_tokens": -1}
        answer = (await client.post("/v1/completions", json=body)).json()
        assert answer["truncated_prompt_tokens"] + answer["usage"]["prompt_tokens"] == whole
        counted = await client.post("/tokenize", json={"model": "tiny", "prompt": LONG})
        assert counted.json()["count"] == whole

    run(test)


def test_the_python_api_refuses_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_llm() as llm:
        forbid(llm, monkeypatch)
        for ask in (llm.generate, llm.chat):
            with pytest.raises(ContextOverflow, match=SAID.pattern) as caught:
                ask(LONG)
            assert caught.value.prompt_tokens > caught.value.limit == LIMITS.context


def test_a_text_that_may_vanish_has_no_least_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_llm() as llm:
        assert llm.tokenizer.least(LONG) > 0
        monkeypatch.setattr(llm.tokenizer, "exact", False)
        monkeypatch.setattr(llm.tokenizer, "_longest", None)
        assert llm.tokenizer.least(LONG) == 0
