"""Answers read again in idle time: the next turn finds them, and nobody else notices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from herder.core.batch import PAGE_TOKENS, Batch, Limits
from herder.core.config import LayerPlan
from herder.core.request import Evaluation, FinishReason, Image, NewToken, Request
from herder.engine import engine as engine_module
from herder.engine.engine import Engine
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.sequence import Sequence
from herder.runtime.fake import FakeExecutor, FakeModel, reference
from tests.engine.waiting import GatedExecutor, eventually

LIMITS = Limits(pages=32, context=512, batch_tokens=64, batch_chunks=8, vocab=97, prompts_apart=True)
LOCAL = replace(LIMITS, local_pages=12, local=LayerPlan(window=2 * PAGE_TOKENS))


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple((seed * 31 + i * i) % 97 for i in range(length))


def run(loop: Loop, request: Request | Evaluation) -> tuple[list[int], Sequence]:
    got: list[int] = []
    sequence = loop.add(request, lambda event: got.append(event.token) if isinstance(event, NewToken) else None, 0)
    while loop.step():
        pass
    return got, sequence


def answer(request: Request, limits: Limits = LIMITS) -> list[int]:
    model = FakeModel(97, local=limits.local, prompts_apart=limits.prompts_apart)
    return reference(model, request.prompt, request.max_tokens or 0, request.sampling, 0, images=request.images)


@pytest.mark.parametrize("images", [(), (Image(None, (1, 1), (66, 67), bytes(32)),)], ids=["text", "an image"])
@pytest.mark.parametrize("limits", [LIMITS, LOCAL], ids=["one pool", "local pool"])
def test_the_second_turn_finds_the_answer_and_is_what_it_would_be_without(
    limits: Limits, images: tuple[Image, ...]
) -> None:
    limits = replace(limits, images=True)
    loop = Loop(FakeExecutor(limits))
    request = Request(prompt(70), max_tokens=150, images=images)
    got, _ = run(loop, request)
    before = loop.stats()
    steps = 0
    while loop.reread():
        steps += 1
        assert loop.idle and loop.stats().pages_used == 0 == loop.stats().local_pages_used
    after = loop.stats()
    assert (before.pages_cached, after.pages_cached) == (2, 6)  # of 220 tokens, 70 of them prompt
    assert (after.reread_tokens, steps) == (4 * PAGE_TOKENS, 2)
    assert after.counters == before.counters
    assert not loop.reread()
    second = Request((*request.prompt, *got, *prompt(30, 3)), max_tokens=20, images=images)
    more, sequence = run(loop, second)
    assert sequence.cached_tokens == 6 * PAGE_TOKENS
    assert more == answer(second, limits) == run(Loop(FakeExecutor(limits)), second)[0]


def test_nothing_is_read_again_without_a_use() -> None:
    long = Request(prompt(70), max_tokens=100)
    for limits, policy, request in (
        (replace(LIMITS, prompts_apart=False), Policy(), long),
        (LIMITS, Policy(prefix_cache=False), long),
        (LIMITS, Policy(reread=False), long),
        (replace(LIMITS, batch_tokens=PAGE_TOKENS - 1), Policy(), long),
        (LIMITS, Policy(), Request(prompt(70), max_tokens=25)),  # 95 tokens: no full page but the prompt's
        (LIMITS, Policy(), Evaluation(prompt(100), "scores")),
    ):
        loop = Loop(FakeExecutor(limits), policy)
        run(loop, request)
        assert not loop.rereader and not loop.reread()


def test_an_aborted_answer_is_not_read_again() -> None:
    loop = Loop(FakeExecutor(LIMITS))
    sequence = loop.add(Request(prompt(70), max_tokens=100), lambda event: None, 0)
    while sequence.generated < 90:
        loop.step()
    loop.abort(sequence)
    assert not loop.reread()


def test_requests_come_first_and_what_was_read_is_kept() -> None:
    loop = Loop(FakeExecutor(LIMITS), Policy(prefill_tokens=PAGE_TOKENS))
    run(loop, Request(prompt(70), max_tokens=150))
    assert loop.reread() and loop.stats().reread_tokens == PAGE_TOKENS
    loop.add(Request(prompt(20, 1), max_tokens=3), lambda event: None, 0)
    assert not loop.reread()
    while loop.step():
        assert loop.stats().reread_tokens == PAGE_TOKENS
    assert loop.stats().pages_cached == 3
    while loop.reread():
        pass
    assert loop.stats().pages_cached == 6


def test_the_newest_answers_are_read_and_those_whose_prompt_is_gone_are_not() -> None:
    loop = Loop(FakeExecutor(replace(LIMITS, pages=16)))
    requests = [Request(prompt(70, seed), max_tokens=150) for seed in range(4)]
    answers = [run(loop, request)[0] for request in requests]
    while loop.reread():
        pass
    assert loop.stats().pages_cached <= 16
    found = []
    for request, got in zip(requests, answers, strict=True):
        chain = loop.scheduler.cache.match(Sequence(
            Request((*request.prompt, *got)), 0, lambda event: None, LIMITS, 0, 0.0
        ).tokens, 6)  # fmt: skip
        found.append(len(chain))
        loop.scheduler.cache.release(chain)
    assert found[2:] == [6, 6] and found[0] < 6


def test_a_failure_is_nobodys_and_ends_that_answer() -> None:
    failing: set[int] = set()

    def fail(number: int, batch: Batch) -> Exception | None:
        return RuntimeError("the roof is on fire") if number in failing else None

    executor = FakeExecutor(LOCAL, fail=fail)
    loop = Loop(executor)
    run(loop, Request(prompt(70, 1), max_tokens=60))
    run(loop, Request(prompt(70), max_tokens=150))
    before = loop.stats()
    failing.add(executor.batches)
    assert loop.reread()
    assert loop.stats() == before
    while loop.reread():
        pass
    assert loop.stats().reread_tokens == 2 * PAGE_TOKENS  # of the other one
    loop.scheduler.cache.clear()
    assert loop.scheduler.pool.free == LOCAL.pages
    assert loop.scheduler.cache.local_pool.free == LOCAL.local_pages


def rereads(batch: Batch) -> bool:
    """Its chunk has no request."""
    return batch.chunks[0].seq == 0


def test_the_engine_reads_when_nobody_has_come_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "REST", 0.01)
    request = Request(prompt(70), max_tokens=150)
    executor = GatedExecutor(LIMITS, rereads)
    executor.gate.clear()
    with Engine(executor) as engine:
        events, _ = engine.submit(request).result()
        assert executor.entered.wait(30)
        assert engine.stats().running == engine.stats().waiting == 0
        waiting = engine.submit(Request(prompt(5), max_tokens=3))  # comes while a step is under way
        executor.gate.set()
        assert waiting.result()[1].reason is FinishReason.LENGTH
        eventually(lambda: engine.stats().pages_cached == 6)
        got = tuple(event.token for event in events if isinstance(event, NewToken))
        _, finished = engine.submit(Request((*request.prompt, *got, 1), max_tokens=1)).result()
        assert finished.usage.cached_tokens == 6 * PAGE_TOKENS
        assert engine.stats().counters.submitted == 3
        eventually(lambda: not engine._worker.loop.rereader)  # and then it sleeps


def test_closing_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "REST", 0.01)
    executor = GatedExecutor(LIMITS, rereads)
    executor.gate.clear()
    engine = Engine(executor)
    engine.submit(Request(prompt(70), max_tokens=150)).result()
    engine.submit(Request(prompt(70, 1), max_tokens=150)).result()
    assert executor.entered.wait(30)
    batches = executor.batches
    engine.close()
    assert executor.closed and executor.interrupted and executor.batches == batches
