"""The guarantees, by property tests on the fake executor: random arrivals, priorities, aborts, page pools, budgets and
executor failures. Nothing leaks, everything finishes in a bounded number of steps, and every request gets exactly the
tokens it would have got alone; the same where prompts are computed apart from what is generated, with pieces of
finished answers read again in between."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.cache.pages import pages_for
from herder.core.batch import PAGE_TOKENS, Batch, Limits
from herder.core.config import LayerPlan
from herder.core.request import Evaluated, Evaluation, Event, Finished, FinishReason, Image, NewToken, Request, Sampling
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.sequence import Sequence, capacity
from herder.runtime.fake import FakeExecutor, FakeModel, Text, reference

both_arithmetics = pytest.mark.parametrize("apart", [False, True], ids=["alike", "prompts apart"])
VOCAB = 5  # few tokens, so that prompts share prefixes, n-grams repeat and stop tokens are met

policies = st.builds(
    Policy,
    prefill_tokens=st.integers(1, 40),
    prefix_cache=st.booleans(),
    speculate=st.sampled_from([0, 0, 1, 4]),
    draft_tokens=st.integers(1, 8),
)


reaches = st.one_of(
    st.none(),
    st.integers(1, 100).map(lambda window: LayerPlan(window=window)),
    st.one_of(st.sampled_from([32, 64]), st.integers(1, 100)).map(lambda chunk: LayerPlan(chunk=chunk)),
)
KEYS = [bytes([number]) * 32 for number in range(2)]


@st.composite
def all_limits(draw: st.DrawFn, apart: bool) -> Limits:
    pages = draw(st.integers(1, 12))
    local = draw(reaches)
    return Limits(
        local_pages=draw(st.integers(0, 8)) if local is not None else 0,
        local=local,
        images=draw(st.booleans()),
        pages=pages,
        context=draw(st.integers(4, pages * PAGE_TOKENS + 20)),
        batch_tokens=draw(st.integers(1, 70)),
        batch_chunks=draw(st.integers(1, 6)),
        vocab=VOCAB,
        prompts_apart=apart,
    )


@st.composite
def prompts(draw: st.DrawFn, longest: int) -> tuple[int, ...]:
    """Runs of one token and a tail: likely to share full pages with other prompts."""
    length = draw(st.integers(1, longest))
    tail = draw(st.lists(st.integers(0, VOCAB - 1), max_size=4))
    run = [draw(st.integers(0, 1))] * length
    return tuple((run + tail)[-length:])


@st.composite
def images(draw: st.DrawFn, prompt: tuple[int, ...], limits: Limits) -> tuple[Image, ...]:
    """Few different ones, so that prompts share them, in few places."""
    if not limits.images:
        return ()
    places = sorted(draw(st.sets(st.integers(0, len(prompt) - 1), max_size=4)))
    cut = draw(st.integers(0, len(places)))
    parts = [part for part in (places[:cut], places[cut:]) if part]
    return tuple(Image(None, (1, 1), part, draw(st.sampled_from(KEYS))) for part in parts)


@st.composite
def requests(draw: st.DrawFn, limits: Limits) -> Request:
    room = capacity(limits)
    prompt = draw(prompts(room - 1))
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3])),
        seed=draw(st.integers(0, 3)),
    )
    limit = draw(st.one_of(st.none(), st.integers(1, min(60, room - len(prompt)))))
    return Request(
        prompt=prompt,
        max_tokens=limit,
        sampling=sampling,
        stop_tokens=frozenset(draw(st.sets(st.integers(0, VOCAB - 1), max_size=1))),
        priority=draw(st.integers(0, 2)),
        images=draw(images(prompt, limits)),
    )


@st.composite
def conversations(draw: st.DrawFn, limits: Limits) -> list[Request]:
    """Requests, some of which repeat the prompt and the answer of an earlier one."""
    coming: list[Request] = []
    for request in draw(st.lists(requests(limits), min_size=1, max_size=8)):
        if coming and draw(st.booleans()):
            before = draw(st.sampled_from(coming))
            prompt = before.prompt + tuple(expected(before, limits)) + request.prompt[:2]
            room = capacity(limits) - len(prompt)
            if room > 0:
                most = None if request.max_tokens is None else min(request.max_tokens, room)
                request = replace(request, prompt=prompt, images=before.images, max_tokens=most)
        coming.append(request)
    return coming


@dataclass
class Reader:
    """Collects the events of one request."""

    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, NewToken)]

    @property
    def finished(self) -> Finished | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished) else None


def expected(request: Request, limits: Limits) -> list[int]:
    room = capacity(limits) - len(request.prompt)
    tokens = room if request.max_tokens is None else request.max_tokens
    return reference(
        FakeModel(limits.vocab, local=limits.local, prompts_apart=limits.prompts_apart),
        request.prompt,
        tokens,
        request.sampling,
        request.sampling.seed or 0,
        request.stop_tokens,
        request.images,
    )


def add(loop: Loop, request: Request | Evaluation) -> tuple[Sequence, Reader]:
    reader = Reader()
    seed = request.sampling.seed if isinstance(request, Request) else 0
    return loop.add(request, reader.events.append, seed or 0), reader


def check_pages(loop: Loop) -> None:
    """Every page is free, idle in the cache, or in the block table of a running sequence. Local pages are, besides,
    held for exactly the blocks that a sequence still sees and has begun or is to begin."""
    scheduler = loop.scheduler
    cache, limits = scheduler.cache, loop.limits
    nodes = list(cache._nodes.values())
    held = {page for sequence in scheduler.running for page in sequence.pages}
    assert limits.pages == len(held) + cache.available
    assert all(
        not (sequence.pages or sequence.nodes or sequence.local_pages or sequence.local_stop)
        for _, sequence in scheduler.waiting
    )
    assert len(scheduler.running) <= min(limits.batch_chunks, limits.batch_tokens)
    for page in held:
        holders = sum(page in sequence.pages for sequence in scheduler.running)
        cached = sum(node.page == page for node in nodes)
        assert scheduler.pool.references(page) == holders + cached
    if not limits.local_pages:
        assert not any(sequence.local_pages for sequence in scheduler.running)
        return
    assert limits.local is not None
    local = {page for sequence in scheduler.running for page in sequence.local_pages if page >= 0}
    assert limits.local_pages == len(local) + cache.available_local
    for page in local:
        holders = sum(page in sequence.local_pages for sequence in scheduler.running)
        assert cache.local_pool.references(page) == holders + sum(node.local == page for node in nodes)
    for sequence in scheduler.running:
        assert len(sequence.local_pages) == len(sequence.pages)
        first = limits.local.first_visible(sequence.computed) // PAGE_TOKENS
        assert [index for index, page in enumerate(sequence.local_pages) if page >= 0] == [
            *range(first, sequence.local_stop)
        ]
    stats = loop.stats()
    assert (stats.local_pages, stats.local_pages_used) == (limits.local_pages, len(local))
    assert stats.local_pages_cached == sum(node.local >= 0 for node in nodes)


def check_empty(loop: Loop) -> None:
    assert loop.idle
    cache = loop.scheduler.cache
    cache.clear()
    assert loop.scheduler.pool.free == loop.limits.pages
    assert cache.local_pool.free == loop.limits.local_pages


def work(loop: Loop, everything: list[Request]) -> int:
    """A generous bound on the steps: each request alone, started again for every page all of them grow by."""
    steps, growth = 0, 0
    for request in everything:
        room = capacity(loop.limits)
        total = room if request.max_tokens is None else len(request.prompt) + request.max_tokens
        steps += total + 1
        growth += pages_for(total) * (2 if loop.limits.local_pages else 1)
    return steps * (growth + 1)


@both_arithmetics
@settings(max_examples=300)
@given(data=st.data())
def test_everyone_gets_the_tokens_they_would_get_alone(apart: bool, data: st.DataObject) -> None:
    limits = data.draw(all_limits(apart), label="limits")
    policy = data.draw(policies, label="policy")
    coming = data.draw(conversations(limits), label="requests")
    failing = data.draw(st.sets(st.integers(0, 60), max_size=2), label="failing batches")
    failed: set[int] = set()

    def fail(number: int, batch: Batch) -> Exception | None:
        if number not in failing:
            return None
        failed.update(chunk.seq for chunk in batch.chunks)
        return RuntimeError("the roof is on fire")

    loop = Loop(FakeExecutor(limits, fail=fail), policy)
    started: list[tuple[Request, Sequence, Reader]] = []
    aborted: set[int] = set()
    bound = work(loop, coming)
    steps = 0
    for request in coming:
        started.append((request, *add(loop, request)))
        for _ in range(data.draw(st.integers(0, 20), label="steps before the next arrival")):
            steps += loop.step() or loop.reread()
            check_pages(loop)
        if data.draw(st.integers(0, 5), label="abort") == 0:
            _, sequence, reader = data.draw(st.sampled_from(started), label="whom")
            if reader.finished is None:
                aborted.add(sequence.arrival)
            loop.abort(sequence)
            check_pages(loop)
    while loop.step():
        check_pages(loop)
        steps += 1
        assert steps <= bound, "somebody starves"
    while loop.reread():
        check_pages(loop)
    check_empty(loop)
    for request, sequence, reader in started:
        finished = reader.finished
        assert finished is not None
        want = expected(request, limits)
        assert finished.usage.completion_tokens == len(reader.tokens)
        if sequence.arrival in aborted:
            assert finished.reason is FinishReason.ABORT
            assert reader.tokens == want[: len(reader.tokens)]
        elif sequence.arrival in failed:
            assert finished.reason is FinishReason.ERROR and finished.error is not None
            assert reader.tokens == want[: len(reader.tokens)]
        else:
            assert reader.tokens == want
            limit = capacity(limits) - len(request.prompt) if request.max_tokens is None else request.max_tokens
            assert finished.reason is (FinishReason.LENGTH if len(want) == limit else FinishReason.STOP)
    counters = loop.stats().counters
    assert counters.finished + counters.aborted + counters.failed == counters.submitted == len(coming)
    assert counters.accepted_tokens <= counters.drafted_tokens


@both_arithmetics
@given(data=st.data())
def test_evaluations_share_the_loop_and_are_never_served_from_the_cache(apart: bool, data: st.DataObject) -> None:
    limits = data.draw(all_limits(apart), label="limits")
    loop = Loop(FakeExecutor(limits), data.draw(policies, label="policy"))
    model = FakeModel(VOCAB)
    room = capacity(limits)
    mixed: list[Request | Evaluation] = []
    for _ in range(data.draw(st.integers(1, 5), label="evaluations")):
        tokens = data.draw(prompts(room))
        report = data.draw(st.sampled_from(["scores", "logits", "hidden"]))
        tokens = tokens * 2 if report == "scores" and len(tokens) == 1 else tokens
        first = data.draw(st.integers(0, len(tokens) - 1))
        mixed.append(Evaluation(tokens, report, first, images=data.draw(images(tokens, limits))))
    mixed += data.draw(st.lists(requests(limits), max_size=3))
    readers = []
    for request in data.draw(st.permutations(mixed)):
        readers.append((request, add(loop, request)[1]))
        for _ in range(data.draw(st.integers(0, 6))):
            loop.step()
            check_pages(loop)
    while loop.step() or loop.reread():
        check_pages(loop)
    check_empty(loop)
    for request, reader in readers:
        assert reader.finished is not None and reader.finished.reason is not FinishReason.ERROR, reader.finished
        if isinstance(request, Request):
            assert reader.tokens == expected(request, limits)
            continue
        values: list[float] = []
        for event in reader.events[:-1]:
            assert isinstance(event, Evaluated)
            piece = list({"scores": event.scores, "logits": event.logits, "hidden": event.hidden}[request.report])
            width = {"scores": 1, "logits": VOCAB, "hidden": model.dim}[request.report]
            least = max(request.first, 1) if request.report == "scores" else request.first
            assert event.first == least + len(values) // width
            values += piece
        assert values == evaluate(request, limits)


def evaluate(request: Evaluation, limits: Limits) -> list[float]:
    """What an evaluation must report, straight from the model's definition."""
    model = FakeModel(VOCAB, local=limits.local)
    text = Text(model, request.images)
    states = [text.append(token) for token in request.tokens]
    if request.report == "scores":
        scored = range(max(request.first, 1), len(request.tokens))
        return list(array("f", [model.logprobs(states[i - 1])[request.tokens[i]] for i in scored]))
    values = model.logits if request.report == "logits" else model.hidden
    return list(array("f", [value for state in states[request.first :] for value in values(state)]))
