"""Answers on the fake executor: events in order, choices, stops, deadlines, and pages that are given back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.message import Message, ToolCall
from herder.core.batch import Batch
from herder.core.errors import ContextOverflow, NumericError, UnsupportedModel, UsageError
from herder.core.request import Constraint, Evaluation
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor
from herder.serve.answers import Run, answer, batches
from herder.serve.evaluations import embed, score
from herder.serve.fields import FieldError
from herder.serve.problems import Refusal
from herder.serve.prompts import count_tokens
from herder.serve.wire import (
    Answer,
    AnswerEvent,
    ChatRequest,
    Choice,
    Done,
    EmbedRequest,
    Ended,
    Started,
    TextDelta,
    TextRequest,
)
from tests.serve.models import CONFIG, LIMITS, fake_llm

HELLO = (Message("user", "hello"),)


def run(test: Callable[[LLM], Coroutine[Any, Any, None]], executor: FakeExecutor | None = None) -> None:
    """Runs a test on a fresh model, and checks that nothing of it is left."""

    async def main() -> None:
        with fake_llm(executor) as llm:
            await test(llm)
            await settled(llm)

    asyncio.run(main())


async def settled(llm: LLM) -> None:
    """Waits until the engine has nothing under way; then no request may hold a page."""
    end = time.monotonic() + 10
    while (stats := llm.engine.stats()).running or stats.waiting:
        assert time.monotonic() < end, stats
        await asyncio.sleep(0.001)
    assert stats.pages_used == 0


async def collected(llm: LLM, request: ChatRequest | TextRequest) -> list[AnswerEvent]:
    return [event async for event in answer(llm, request)]


def whole(request: ChatRequest | TextRequest, events: list[AnswerEvent]) -> Answer:
    prompts = len(request.prompts) if isinstance(request, TextRequest) else 1
    result = Answer([Choice() for _ in range(request.n * prompts)])
    for event in events:
        result.feed(event)
    return result


def chat(**values: Any) -> ChatRequest:
    return ChatRequest(model="tiny", messages=HELLO, **values)


def text(*prompts: str | tuple[int, ...], **values: Any) -> TextRequest:
    return TextRequest(model="tiny", prompts=prompts, **values)


def test_a_chat_is_what_the_python_api_says() -> None:
    async def test(llm: LLM) -> None:
        request = chat(options={"max_tokens": 30, "ignore_eos": True})
        events = await collected(llm, request)
        expected = await llm.achat("hello", max_tokens=30, ignore_eos=True)
        assert whole(request, events).choices[0].text == expected.text
        assert isinstance(events[0], Started) and isinstance(events[-1], Done) and isinstance(events[-2], Ended)
        assert events[0].prompt_tokens == expected.usage.prompt_tokens == await count_tokens(llm, request)
        assert (events[-2].reason, events[-2].tokens) == ("length", 30)
        assert events[-1].completion_tokens == 30

    run(test)


def test_several_prompts_and_choices_keep_their_places() -> None:
    async def test(llm: LLM) -> None:
        options = {"max_tokens": 9, "temperature": 1.0, "seed": 7, "ignore_eos": True}
        request = text("one", "two", n=3, options=options)
        found = whole(request, await collected(llm, request))
        for i, prompt in enumerate(("one", "two")):
            for j in range(3):
                options["seed"] = 7 + j
                choice = found.choices[3 * i + j]
                assert choice.text == llm.generate(prompt, **options).text  # type: ignore[call-overload]
                assert choice.seed == 7 + j
        assert found.done is not None and found.done.completion_tokens == 54
        assert found.done.prompt_tokens == len(llm.tokens("one")) + len(llm.tokens("two"))  # each prompt once

    run(test)


def test_choices_compute_a_long_prompt_once() -> None:
    async def test(llm: LLM) -> None:
        prompt = tuple(range(3, 203))
        request = text(prompt, n=4, options={"max_tokens": 5, "ignore_eos": True, "temperature": 1.0})
        await collected(llm, request)
        computed = llm.engine.stats().counters.prompt_tokens
        assert computed < 200 + 3 * 33, "the other choices compute what is beyond the last full page"

    run(test)


def test_a_stop_string_ends_its_choice_and_is_named() -> None:
    async def test(llm: LLM) -> None:
        plain = llm.generate("hello", max_tokens=40, ignore_eos=True).text
        stop = plain[10:12]
        request = text("hello", options={"max_tokens": 40, "stop": [stop], "ignore_eos": True, "logprobs": 0})
        choice = whole(request, await collected(llm, request)).choices[0]
        assert choice.text == plain[: plain.index(stop)]
        assert (choice.reason, choice.stop) == ("stop", stop)
        shown = b"".join(llm.tokenizer.token_bytes(one.token) for one in choice.logprobs)
        assert shown.decode("utf-8", "replace").startswith(choice.text)

    run(test)


def test_logprobs_are_one_a_token_and_none_is_lost() -> None:
    async def test(llm: LLM) -> None:
        request = text("hello", options={"max_tokens": 25, "logprobs": 2, "ignore_eos": True})
        choice = whole(request, await collected(llm, request)).choices[0]
        expected = llm.generate("hello", max_tokens=25, logprobs=2, ignore_eos=True)
        assert choice.logprobs == list(expected.logprobs)

    run(test)


def test_echo_brings_the_prompt_and_its_logprobs() -> None:
    async def test(llm: LLM) -> None:
        request = text("hello you", echo=True, options={"max_tokens": 3, "logprobs": 2, "ignore_eos": True})
        choice = whole(request, await collected(llm, request)).choices[0]
        tokens = llm.tokens("hello you")
        assert choice.text == "hello you" + llm.generate("hello you", max_tokens=3, ignore_eos=True).text
        assert [one.token for one in choice.logprobs[: len(tokens)]] == list(tokens)
        assert math.isnan(choice.logprobs[0].logprob)
        for found, expected in zip(choice.logprobs[1:], llm.score("hello you"), strict=False):
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
            assert len(found.top) == 2 and found.top[0][1] >= found.top[1][1]
        scored = text("hello you", echo=True, options={"max_tokens": 0, "logprobs": 0})
        only = whole(scored, await collected(llm, scored))
        assert only.choices[0].text == "hello you" and len(only.choices[0].logprobs) == len(tokens)
        assert only.done is not None and only.done.completion_tokens == 0

    run(test)


def test_a_deadline_ends_an_answer_with_what_there_is() -> None:
    async def test(llm: LLM) -> None:
        request = text("hello", deadline=1.0, n=2, options={"ignore_eos": True})
        found = whole(request, await collected(llm, request))
        assert [choice.reason for choice in found.choices] == ["length", "length"]
        assert all(0 < choice.tokens < 900 for choice in found.choices)

    run(test, Slow(LIMITS, dim=CONFIG.dim))


class Slow(FakeExecutor):
    """A step takes 10 ms."""

    def result(self, ticket: Any) -> Any:
        time.sleep(0.01)
        return super().result(ticket)


class Stuck(FakeExecutor):
    """A step takes half a second."""

    def result(self, ticket: Any) -> Any:
        time.sleep(0.5)
        return super().result(ticket)


def test_a_deadline_before_the_first_token_is_an_error() -> None:
    async def test(llm: LLM) -> None:
        with pytest.raises(Refusal, match=r"deadline of 0\.05 s") as caught:
            await collected(llm, text("hello", deadline=0.05))
        assert caught.value.problem.kind == "timeout"

    run(test, Stuck(LIMITS, dim=CONFIG.dim))


def test_closing_the_iterator_gives_everything_back() -> None:
    async def test(llm: LLM) -> None:
        events = batches(llm, text(tuple(range(3, 100)), n=3, options={"ignore_eos": True}))
        assert isinstance((await anext(events))[0], Started)
        await anext(events)
        await events.aclose()
        await settled(llm)
        assert llm.engine.stats().counters.aborted >= 1

    run(test, Slow(LIMITS, dim=CONFIG.dim))


def test_cancelling_the_task_gives_everything_back() -> None:
    async def test(llm: LLM) -> None:
        task = asyncio.create_task(collected(llm, chat(options={"ignore_eos": True})))
        while not llm.engine.stats().counters.submitted:  # rendering and encoding take a thread, and that its time
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settled(llm)
        assert llm.engine.stats().counters.aborted == 1

    run(test, Slow(LIMITS, dim=CONFIG.dim))


def test_what_cannot_run_is_refused_before_anything_does() -> None:
    async def test(llm: LLM) -> None:
        cases: list[tuple[ChatRequest | TextRequest, type[Exception], str | None]] = [
            (text("x" * 2000), ContextOverflow, "tokens"),
            (text("x", n=0), FieldError, "between 1 and 128"),
            (text("x", n=200), FieldError, "at most|between"),
            (text("x", options={"max_tokens": 0}), FieldError, "max_tokens is 0"),
            (text("x", options={"temperature": -1.0}), UsageError, "temperature"),
            (text("x", options={"logit_bias": {99999: 1.0}}), FieldError, "logit_bias"),
            (text("x", suffix="y"), UnsupportedModel, None),
            (chat(format_options={"bogus": 1}), UsageError, "bogus"),
        ]
        for request, kind, words in cases:
            with pytest.raises(kind, match=words):
                await collected(llm, request)
        assert llm.engine.stats().counters.submitted == 0

    run(test)


def test_more_tokens_than_the_window_holds_end_with_it() -> None:
    async def test(llm: LLM) -> None:
        request = text(tuple(range(3, 253)) * 3, options={"max_tokens": 100_000, "ignore_eos": True})
        choice = whole(request, await collected(llm, request)).choices[0]
        assert (choice.reason, choice.tokens) == ("length", llm.context - 750)

    run(test)


def test_truncation_leaves_the_oldest_out_and_says_how_much() -> None:
    async def test(llm: LLM) -> None:
        long = text("a" * 3000, truncate=True, options={"max_tokens": 10})
        started = (await collected(llm, long))[0]
        assert isinstance(started, Started)
        assert started.prompt_tokens == llm.context - 10
        assert started.truncated == len(llm.tokens("a" * 3000)) - started.prompt_tokens
        turns = [Message("system", "be brief")]
        for i in range(30):
            turns += [Message("user", f"question {i} " + "x" * 40), Message("assistant", "yes")]
        turns.append(Message("user", "the last"))
        request = ChatRequest(model="tiny", messages=tuple(turns), truncate=True, options={"max_tokens": 10})
        started = (await collected(llm, request))[0]
        assert isinstance(started, Started)
        assert started.truncated > 0 and started.prompt_tokens <= llm.context - 10
        with pytest.raises(ContextOverflow):
            await collected(llm, ChatRequest(model="tiny", messages=tuple(turns), options={"max_tokens": 10}))
        with pytest.raises(ContextOverflow, match="last turn"):
            await collected(llm, ChatRequest(model="tiny", messages=(Message("user", "x" * 4000),), truncate=True))

    run(test)


def test_the_engines_error_is_raised() -> None:
    def fail(number: int, batch: Batch) -> Exception | None:
        return NumericError("the weights are damaged") if number == 3 else None

    async def test(llm: LLM) -> None:
        with pytest.raises(NumericError):
            await collected(llm, text("hello", n=2, options={"ignore_eos": True}))
        await settled(llm)

    run(test, FakeExecutor(LIMITS, dim=CONFIG.dim, fail=fail))


def test_history_with_calls_and_unknown_tools_runs() -> None:
    async def test(llm: LLM) -> None:
        messages = (
            Message("user", "weather?"),
            Message("assistant", "I look.", tool_calls=(ToolCall("look", {"at": "sky"}, "call_1"),)),
            Message("tool", "blue", tool_call_id="call_1"),
        )
        request = ChatRequest(model="tiny", messages=messages, options={"max_tokens": 4, "ignore_eos": True})
        assert whole(request, await collected(llm, request)).choices[0].tokens == 4

    run(test)


def test_embeddings_and_scores_are_the_python_apis() -> None:
    async def test(llm: LLM) -> None:
        vectors, tokens = await embed(llm, EmbedRequest("tiny", ("one", "two")))
        assert vectors == [pytest.approx(list(row), abs=1e-6) for row in llm.embed(["one", "two"])]
        assert tokens == len(llm.tokens("one")) + len(llm.tokens("two"))
        short, _ = await embed(llm, EmbedRequest("tiny", ("one",), dimensions=2))
        assert len(short[0]) == 2 and math.hypot(*short[0]) == pytest.approx(1.0, abs=1e-6)
        with pytest.raises(FieldError, match="dimensions"):
            await embed(llm, EmbedRequest("tiny", ("one",), dimensions=CONFIG.dim + 1))
        with pytest.raises(ContextOverflow):
            await embed(llm, EmbedRequest("tiny", ("x" * 3000,)))
        assert (await embed(llm, EmbedRequest("tiny", ("x" * 3000,), truncate=True)))[1] == llm.context
        assert await score(llm, llm.tokens("one two")) == llm.score("one two")

    run(test)


@settings(max_examples=25)
@given(
    prompts=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3),
    n=st.integers(1, 3),
    tokens=st.integers(1, 20),
    stop=st.sampled_from([None, "a", "e", " t"]),
    seed=st.integers(0, 5),
)
def test_pieces_join_to_the_whole(prompts: list[str], n: int, tokens: int, stop: str | None, seed: int) -> None:
    """Whatever runs together: each choice is what it would be alone, and its pieces join to its text."""

    async def test(llm: LLM) -> None:
        options = {"max_tokens": tokens, "temperature": 1.0, "seed": seed, "stop": stop}
        request = text(*prompts, n=n, options=options)
        events = await collected(llm, request)
        ended: set[int] = set()
        for event in events:
            if isinstance(event, TextDelta):
                assert event.choice not in ended, "a delta behind the end of its choice"
            elif isinstance(event, Ended):
                ended.add(event.choice)
        found = whole(request, events)
        for index, choice in enumerate(found.choices):
            alone = llm.generate(prompts[index // n], **{**options, "seed": seed + index % n})  # type: ignore[call-overload]
            assert (choice.text, choice.stop, choice.tokens) == (alone.text, alone.stop, len(alone.tokens))

    run(test)


def test_a_run_counts_what_was_generated_before_it_was_cut_off() -> None:
    async def test(llm: LLM) -> None:
        one = Run(llm, text("hello", options={"ignore_eos": True}))
        events = one.batches()
        for _ in range(4):
            await anext(events)
        await events.aclose()
        assert one.tokens >= 4
        llm.engine.submit(Evaluation((1, 2, 3), "scores")).result()  # the engine goes on

    run(test)


def test_a_constraint_holds_every_choice() -> None:
    async def test(llm: LLM) -> None:
        form = Constraint("choice", ("yes", "no"))
        for request in (chat(n=3, constraint=form), text("x", n=3, constraint=form)):
            found = whole(request, await collected(llm, replace(request, options={"temperature": 1.0})))
            assert {choice.text for choice in found.choices} <= {"yes", "no"}
            assert {choice.reason for choice in found.choices} == {"stop"}
        with pytest.raises(UsageError):
            await collected(llm, chat(constraint=Constraint("regex", "(")))

    run(test)
