"""Readiness: a model is ready when it has generated a token, and not before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from herder.core.batch import Batch
from herder.core.errors import ModelFileError, NumericError
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor
from herder.serve import health
from herder.serve.config import Config, ModelSpec
from herder.serve.health import readiness
from herder.serve.log import Log
from herder.serve.models import Models, Need
from herder.serve.server import Server
from tests.serve.models import CONFIG, LIMITS, fake_llm


def run(test: Callable[[Server], Coroutine[Any, Any, None]], load: Callable[[], LLM] = fake_llm) -> None:
    async def main() -> None:
        specs = [ModelSpec("first", preload=True), ModelSpec("later")]
        models = Models(specs, lambda spec, need: load(), lambda spec, room: Need(1))
        server = Server(Config(), models, log=Log(requests=False))
        await test(server)
        await server.close()

    asyncio.run(main())


async def load(server: Server, name: str = "first") -> LLM:
    async with server.models.use(name) as llm:
        return llm


def test_ready_means_that_a_token_was_generated() -> None:
    async def test(server: Server) -> None:
        assert await readiness(server) == (False, {"status": "not ready", "models": {"first": "loading"}})
        llm = await load(server)
        assert await readiness(server) == (True, {"status": "ready", "models": {"first": "ready"}})
        assert llm.engine.stats().counters.generated_tokens == 1
        await readiness(server)
        assert llm.engine.stats().counters.generated_tokens == 1, "a token of a moment ago is enough"
        server.draining = True
        assert (await readiness(server))[0] is False

    run(test)


def test_one_that_was_unloaded_for_want_of_use_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FRESH", 0.0)

    async def test(server: Server) -> None:
        await load(server)
        assert await server.models.unload("first")
        assert (await readiness(server))[0]

    run(test)


def test_a_model_that_does_not_load_is_not_ready() -> None:
    def broken() -> LLM:
        raise ModelFileError("first.gguf is truncated")

    async def test(server: Server) -> None:
        with pytest.raises(ModelFileError):
            await load(server)
        ready, document = await readiness(server)
        assert not ready and document["models"] == {"first": "failed: first.gguf is truncated"}

    run(test, broken)


def test_a_model_that_generates_nothing_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(FakeExecutor):
        def result(self, ticket: Any) -> Any:
            time.sleep(0.3)
            return super().result(ticket)

    def fail(number: int, batch: Batch) -> Exception | None:
        return NumericError("the weights are damaged")

    for executor, patience, words in (
        (Stuck(LIMITS, dim=CONFIG.dim), 0.05, "busy: no token"),
        (FakeExecutor(LIMITS, dim=CONFIG.dim, fail=fail), 10.0, "failed: the weights are damaged"),
    ):
        monkeypatch.setattr(health, "PATIENCE", patience)

        async def test(server: Server, words: str = words) -> None:
            await load(server)
            ready, document = await readiness(server)
            assert not ready and document["models"]["first"].startswith(words)

        run(test, lambda executor=executor: fake_llm(executor))  # type: ignore[misc]
