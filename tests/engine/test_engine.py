from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator

import pytest

from herder.core.batch import Batch, Limits
from herder.core.errors import ContextOverflow, UsageError
from herder.core.request import Evaluated, Evaluation, Event, FinishReason, NewToken, Request, Sampling
from herder.engine.engine import Engine
from herder.engine.scheduler import Policy
from herder.runtime.fake import FakeExecutor, FakeModel, reference
from tests.engine.waiting import GatedExecutor, eventually

LIMITS = Limits(pages=64, context=1024, batch_tokens=128, batch_chunks=16, vocab=1000)


@pytest.fixture
def executor() -> GatedExecutor:
    return GatedExecutor(LIMITS)


@pytest.fixture
def engine(executor: GatedExecutor) -> Iterator[Engine]:
    with Engine(executor) as engine:
        yield engine
    assert executor.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "herder-engine"]


def tokens(events: list[Event]) -> list[int]:
    return [event.token for event in events if isinstance(event, NewToken)]


def alone(request: Request, seed: int = 0) -> list[int]:
    return reference(FakeModel(1000), request.prompt, request.max_tokens or 0, request.sampling, seed)


def requests(count: int) -> list[Request]:
    return [Request(tuple(range(i + 3)), max_tokens=20 + i, sampling=Sampling(1.0, seed=i)) for i in range(count)]


def test_no_thread_before_the_first_request(engine: Engine) -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "herder-engine"]


def test_streams_from_many_threads(engine: Engine) -> None:
    results: dict[int, list[int]] = {}

    def reader(index: int, request: Request) -> None:
        events, finished = engine.submit(request).result()
        assert finished.reason is FinishReason.LENGTH
        assert finished.seed == index
        results[index] = tokens(events)

    everything = requests(12)
    threads = [threading.Thread(target=reader, args=pair) for pair in enumerate(everything)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {index: alone(request, index) for index, request in enumerate(everything)}


def test_async_streams(engine: Engine) -> None:
    async def reader(request: Request) -> list[int]:
        return [event.token async for event in engine.submit_async(request) if isinstance(event, NewToken)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(reader(request) for request in requests(12)))

    for _ in range(2):  # each asyncio.run has a loop of its own
        assert asyncio.run(main()) == [alone(request, index) for index, request in enumerate(requests(12))]


def test_a_step_wakes_the_event_loop_once(engine: Engine, executor: GatedExecutor) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        wakes = 0
        plain = loop.call_soon_threadsafe

        def counted(*args: object) -> object:
            nonlocal wakes
            wakes += 1
            return plain(*args)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        executor.gate.clear()
        streams = [engine.submit_async(Request((1, 2, i), max_tokens=1)) for i in range(8)]
        eventually(executor.entered.is_set)
        executor.gate.set()
        # This coroutine does not yield, so the loop stays asleep until both steps are over.
        eventually(lambda: engine.stats().counters.finished == 8)
        for stream in streams:
            await stream.result()
        return wakes

    assert asyncio.run(main()) == 1


def test_an_abandoned_event_loop_loses_its_request_only(engine: Engine, executor: GatedExecutor) -> None:
    async def start() -> object:
        executor.gate.clear()
        stream = engine.submit_async(Request((1,), max_tokens=500))
        while not executor.entered.is_set():
            await asyncio.sleep(0.01)
        return stream

    kept = asyncio.run(start())
    executor.gate.set()
    eventually(lambda: engine.stats().running == 0)
    request = Request((4, 5), max_tokens=5)
    assert tokens(engine.submit(request).result()[0]) == alone(request)
    del kept


def test_abort_ends_the_stream_and_frees_the_pages(engine: Engine) -> None:
    stream = engine.submit(Request((1, 2, 3), max_tokens=1000))
    next(stream)
    stream.abort()
    events, finished = stream.result()
    assert finished.reason is FinishReason.ABORT
    assert finished.usage.completion_tokens == len(tokens(events)) + 1
    assert engine.stats().pages_used == 0
    stream.abort()  # once more does no harm
    assert list(stream) == []


@pytest.mark.parametrize("leave", ["with", "break"])
def test_leaving_a_stream_early_aborts_it(engine: Engine, leave: str) -> None:
    if leave == "with":
        with engine.submit(Request((1,), max_tokens=1000)) as stream:
            next(stream)
    else:
        for _ in engine.submit(Request((1,), max_tokens=1000)):
            break
        gc.collect()
    eventually(lambda: engine.stats().running == 0)
    assert engine.stats().counters.aborted == 1


def test_a_request_aborted_before_it_started_gets_its_last_event(engine: Engine, executor: GatedExecutor) -> None:
    executor.gate.clear()
    first = engine.submit(Request((1,), max_tokens=2))
    assert executor.entered.wait(30)
    second = engine.submit(Request((2,), max_tokens=2))
    second.abort()
    executor.gate.set()
    assert second.result()[1].reason is FinishReason.ABORT
    assert first.result()[1].reason is FinishReason.LENGTH


def test_a_failing_batch_ends_its_requests_and_no_others() -> None:
    def fail(number: int, batch: Batch) -> Exception | None:
        return RuntimeError("no") if any(chunk.tokens[-1] == 666 for chunk in batch.chunks) else None

    with Engine(FakeExecutor(LIMITS, fail=fail)) as engine:
        finished = engine.submit(Request((666,))).result()[1]
        assert finished.reason is FinishReason.ERROR
        assert str(finished.error) == "no"
        request = Request((1, 2), max_tokens=5)
        assert tokens(engine.submit(request).result()[0]) == alone(request)


def test_a_bug_in_the_loop_leaves_nobody_waiting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(engine._worker.loop.scheduler, "plan", lambda: 1 / 0)
    finished = engine.submit(Request((1,))).result()[1]
    assert finished.reason is FinishReason.ERROR and isinstance(finished.error, ZeroDivisionError)
    eventually(lambda: engine._worker._failure is not None)
    with pytest.raises(RuntimeError, match="internal error"):
        engine.submit(Request((1,)))


def test_close_aborts_what_runs_and_interrupts_the_executor(executor: GatedExecutor) -> None:
    engine = Engine(executor)
    executor.gate.clear()
    streams = [engine.submit(Request((1,), max_tokens=5)) for _ in range(2)]
    assert executor.entered.wait(30)
    engine.close()
    assert [stream.result()[1].reason for stream in streams] == [FinishReason.ABORT] * 2
    assert executor.closed and executor.interrupted
    with pytest.raises(UsageError, match="closed"):
        engine.submit(Request((1,)))
    engine.close()


def test_an_engine_nobody_holds_ends_its_thread(executor: GatedExecutor) -> None:
    engine = Engine(executor)
    engine.submit(Request((1,), max_tokens=2)).result()
    del engine
    gc.collect()
    assert executor.closed


def test_refusals_come_from_submit_itself(engine: Engine) -> None:
    with pytest.raises(ContextOverflow):
        engine.submit(Request((1,), max_tokens=5000))
    with pytest.raises(UsageError):
        engine.submit(Evaluation((), "logits"))
    assert engine.stats().counters.submitted == 0


def test_a_seed_is_drawn_reported_and_repeats_the_text(engine: Engine) -> None:
    request = Request((1, 2, 3), max_tokens=30, sampling=Sampling(1.0))
    events, finished = engine.submit(request).result()
    assert 0 <= finished.seed < 2**32
    again = Request((1, 2, 3), max_tokens=30, sampling=Sampling(1.0, seed=finished.seed))
    assert tokens(engine.submit(again).result()[0]) == tokens(events)
    other = engine.submit(request).result()
    assert other[1].seed != finished.seed and tokens(other[0]) != tokens(events)


def test_evaluations_and_generations_share_the_engine(engine: Engine) -> None:
    text = tuple(range(200))
    scores = engine.submit(Evaluation(text, "scores"))
    generated = engine.submit(Request(text, max_tokens=3))
    logits = engine.submit(Evaluation(text[:9], "logits", first=4))
    pieces = [event for event in scores if isinstance(event, Evaluated)]
    assert [piece.first for piece in pieces] == [1, 1 + len(pieces[0].scores)]
    assert sum(len(piece.scores) for piece in pieces) == 199
    assert tokens(generated.result()[0]) == alone(Request(text, max_tokens=3))
    (event,), _ = logits.result()
    assert isinstance(event, Evaluated) and event.first == 4 and len(event.logits) == 5 * 1000


def test_stats_count(engine: Engine) -> None:
    for _ in range(2):
        engine.submit(Request(tuple(range(100)), max_tokens=10)).result()
    stats = engine.stats()
    counters = stats.counters
    assert (counters.submitted, counters.finished, counters.generated_tokens) == (2, 2, 20)
    assert counters.cached_tokens == 96
    assert stats.pages == 64 and stats.pages_used == 0 and stats.pages_cached == 3


def test_speculation_through_the_engine_changes_nothing() -> None:
    limits = Limits(pages=64, context=1024, batch_tokens=128, batch_chunks=16, vocab=2)
    request = Request((0, 1) * 10, max_tokens=200, sampling=Sampling(1.0, seed=4))
    with Engine(FakeExecutor(limits)) as plain, Engine(FakeExecutor(limits), Policy(speculate=5)) as fast:
        assert tokens(fast.submit(request).result()[0]) == tokens(plain.submit(request).result()[0])
        assert fast.stats().counters.accepted_tokens > 0
