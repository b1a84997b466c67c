"""Prompts with an arithmetic of their own: chunks of one kind, and pages found by those whose entries are the same."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from herder.cache.prefix import content
from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Limits, Output
from herder.core.config import LayerPlan
from herder.core.request import Image, NewToken, Request, Sampling
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.sequence import Sequence
from herder.runtime.fake import FakeExecutor, FakeModel, reference

LIMITS = Limits(pages=8, context=256, batch_tokens=128, batch_chunks=8, vocab=97, prompts_apart=True)
MODEL = FakeModel(97, prompts_apart=True)


class Recorder(FakeExecutor):
    """Keeps every chunk: first position, tokens, whether they are prompt."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        super().__init__(limits)
        self.chunks: list[tuple[int, int, int, bool]] = []

    def result(self, ticket: object) -> list[Output]:
        batch: Batch = ticket.batch  # type: ignore[attr-defined]
        self.chunks += [(chunk.seq, chunk.start, len(chunk.tokens), chunk.prompt) for chunk in batch.chunks]
        return super().result(ticket)  # type: ignore[arg-type]


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple((seed * 31 + i * i) % 97 for i in range(length))


def answer(request: Request) -> list[int]:
    return reference(MODEL, request.prompt, request.max_tokens or 0, request.sampling, 0)


def start(loop: Loop, request: Request) -> tuple[Sequence, list[int]]:
    got: list[int] = []
    return loop.add(request, lambda event: got.append(event.token) if isinstance(event, NewToken) else None, 0), got


def finish(loop: Loop) -> None:
    while loop.step():
        pass


def test_the_two_kinds_of_tokens_give_different_answers() -> None:
    alike = reference(FakeModel(97), prompt(10), 20, Sampling(), 0)
    apart = reference(MODEL, prompt(10), 20, Sampling(), 0)
    assert alike[0] == apart[0] and alike != apart
    repeated = reference(MODEL, (*prompt(10), *apart[:5]), 15, Sampling(), 0)
    assert repeated != apart[5:]


@pytest.mark.parametrize("evicted", [True, False])
def test_a_displaced_sequence_recomputes_the_prompt_and_then_the_rest_or_finds_its_own_pages(evicted: bool) -> None:
    executor = Recorder()
    loop = Loop(executor)
    request = Request(prompt(40), max_tokens=100)
    sequence, got = start(loop, request)
    while len(got) < 70:
        loop.step()
    loop.scheduler._preempt(sequence)
    if evicted:
        loop.scheduler.cache.clear()
    executor.chunks.clear()
    finish(loop)
    done = 0 if evicted else 3 * PAGE_TOKENS
    parts = [(0, 40, True), (40, 70, False)] if evicted else [(done, 110 - done, False)]
    assert [chunk[1:] for chunk in executor.chunks[: len(parts)]] == parts
    assert got == answer(request)


def test_a_prompt_that_repeats_an_answer_does_not_find_the_pages_of_the_one_that_wrote_it() -> None:
    loop = Loop(FakeExecutor(LIMITS))
    request = Request(prompt(40), max_tokens=100)
    writer, got = start(loop, request)
    while len(got) < 60:
        loop.step()
    loop.scheduler._preempt(writer)
    loop.abort(writer)
    assert loop.scheduler.cache.cached == 3
    second = Request((*request.prompt, *got, 5), max_tokens=20)
    reader, more = start(loop, second)
    finish(loop)
    assert reader.cached_tokens == PAGE_TOKENS
    assert more == answer(second)


def test_pages_whose_local_part_is_given_back_meet_those_of_a_twin_that_has_it() -> None:
    limits = replace(LIMITS, pages=16, local_pages=10, local=LayerPlan(window=2 * PAGE_TOKENS))
    loop = Loop(FakeExecutor(limits))
    request = Request(prompt(40), max_tokens=150)
    (twin, _), (sequence, got) = start(loop, request), start(loop, request)
    while len(got) < 70:
        loop.step()
    loop.scheduler._preempt(twin)
    loop.abort(twin)
    while len(got) < 140:
        loop.step()
    assert sequence.local_first == 3
    loop.scheduler._preempt(sequence)
    assert loop.scheduler.cache.available_local == limits.local_pages
    finish(loop)
    assert got == reference(FakeModel(97, local=limits.local, prompts_apart=True), request.prompt, 150, Sampling(), 0)
    loop.scheduler.cache.clear()
    assert loop.scheduler.cache.local_pool.free == limits.local_pages


def test_generated_pages_of_a_finished_answer_are_free_again() -> None:
    loop = Loop(FakeExecutor(LIMITS))
    start(loop, Request(prompt(40), max_tokens=100))
    finish(loop)
    assert loop.scheduler.cache.cached == 1
    assert loop.scheduler.pool.free == LIMITS.pages - 1


@pytest.mark.parametrize("apart", [False, True])
def test_drafts_are_never_in_a_chunk_of_prompt(apart: bool) -> None:
    executor = Recorder(replace(LIMITS, prompts_apart=apart))
    loop = Loop(executor, Policy(speculate=4))
    request = Request((1, 2, 3, 4, 5, 6, 7, 8) * 4, max_tokens=40)
    _, got = start(loop, request)
    finish(loop)
    assert executor.chunks[0] == (1, 0, 32 if apart else 36, True)
    model = FakeModel(97, prompts_apart=apart)
    assert got == reference(model, request.prompt, 40, Sampling(), 0)


def test_what_a_page_holds_says_where_generated_tokens_begin() -> None:
    tokens = array("i", range(3 * PAGE_TOKENS))
    image = Image(None, (1, 1), (PAGE_TOKENS + 1,), bytes(32))
    for images in ((), (image,)):
        plain = [content(tokens, index, images) for index in range(3)]
        assert [content(tokens, index, images, len(tokens)) for index in range(3)] == plain
        assert content(tokens, 0, images, PAGE_TOKENS) == plain[0]
        inside = {content(tokens, 1, images, PAGE_TOKENS + place) for place in range(PAGE_TOKENS)}
        assert len(inside | {plain[1]}) == PAGE_TOKENS + 1
        assert content(tokens, 2, images, PAGE_TOKENS) == content(tokens, 2, images, 2 * PAGE_TOKENS) != plain[2]


def test_chunks_say_what_they_are_in_any_case() -> None:
    executor = Recorder(replace(LIMITS, prompts_apart=False))
    loop = Loop(executor)
    start(loop, Request(prompt(200), max_tokens=2))
    finish(loop)
    assert [chunk[1:] for chunk in executor.chunks] == [(0, 128, True), (128, 72, True), (200, 1, False)]


def test_a_chunk_of_both_kinds_is_a_bug() -> None:
    sequence = Sequence(Request((1, 2, 3)), 1, lambda event: None, LIMITS, 0, 0.0)
    sequence.append(4)
    with pytest.raises(AssertionError, match="prompt and generated"):
        sequence.chunk(4)
    assert isinstance(sequence.chunk(3), Chunk)
