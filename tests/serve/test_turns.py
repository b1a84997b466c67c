"""A user with many requests under way delays another user's by one: texts to embed and to score, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from herder.llm import LLM
from herder.serve.evaluations import embed, prompt_logprobs, score
from herder.serve.wire import EmbedRequest
from tests.serve.models import CONFIG, LIMITS
from tests.serve.test_answers import Slow
from tests.serve.test_answers import run as run_on

Ask = Callable[[LLM, str, str], Awaitable[object]]


async def embedded(llm: LLM, text: str, group: str) -> object:
    return await embed(llm, EmbedRequest("tiny", (text,)), group)


async def scored(llm: LLM, text: str, group: str) -> object:
    return await score(llm, llm.tokens(text), group)


async def ranked(llm: LLM, text: str, group: str) -> object:
    return await prompt_logprobs(llm, llm.tokens(text), 2, group)


@pytest.mark.parametrize("ask", [embedded, scored, ranked])
def test_a_newcomer_does_not_wait_for_a_crowd(ask: Ask) -> None:
    async def test(llm: LLM) -> None:
        order: list[str] = []

        async def one(group: str, number: int) -> None:
            await ask(llm, f"text number {number}", group)
            order.append(group)

        async with asyncio.TaskGroup() as tasks:
            for number in range(12):
                tasks.create_task(one("crowd", number))
            while not order:
                await asyncio.sleep(0.001)
            tasks.create_task(one("newcomer", 99))
        assert order.index("newcomer") < 6, order

    run_on(test, Slow(replace(LIMITS, batch_chunks=1), dim=CONFIG.dim))
