"""Layers of bounded reach, and images, one case each. The whole is covered by test_guarantee.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from herder.core.batch import PAGE_TOKENS, Limits
from herder.core.config import LayerPlan
from herder.core.errors import ContextOverflow, UnsupportedModel, UsageError
from herder.core.request import Evaluation, Image, NewToken, Request
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.sequence import Sequence, capacity, check
from herder.runtime.fake import FakeExecutor, FakeModel, reference

CHUNK = LayerPlan(chunk=2 * PAGE_TOKENS)
LIMITS = Limits(
    pages=64, context=2048, batch_tokens=96, batch_chunks=8, vocab=97, local_pages=8, local=CHUNK, images=True
)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple((seed * 31 + i * i) % 97 for i in range(length))


def start(loop: Loop, request: Request) -> tuple[Sequence, list[int]]:
    answer: list[int] = []
    sequence = loop.add(request, lambda event: answer.append(event.token) if isinstance(event, NewToken) else None, 0)
    return sequence, answer


def alone(request: Request, limits: Limits = LIMITS) -> list[int]:
    model = FakeModel(limits.vocab, local=limits.local)
    return reference(model, request.prompt, request.max_tokens or 0, request.sampling, 0, images=request.images)


def test_a_long_prompt_holds_its_reach_and_a_batch() -> None:
    loop = Loop(FakeExecutor(LIMITS), Policy(prefix_cache=False))
    request = Request(prompt(1000), max_tokens=100)
    sequence, answer = start(loop, request)
    used = []
    while loop.step():
        used.append(loop.stats().local_pages_used)
        assert sum(page >= 0 for page in sequence.local_pages) == used[-1]
    assert max(used) <= 2 + 96 // PAGE_TOKENS and used[-1] == 0
    assert answer == alone(request)


def test_a_chunk_is_given_back_when_the_next_one_begins() -> None:
    loop = Loop(FakeExecutor(LIMITS), Policy(prefix_cache=False))
    sequence, _ = start(loop, Request(prompt(62), max_tokens=10))
    loop.step()
    assert sum(page >= 0 for page in sequence.local_pages) == 2
    loop.step()
    assert sequence.computed == 63 and sum(page >= 0 for page in sequence.local_pages) == 2
    loop.step()
    assert sequence.computed == 64 and not [page for page in sequence.local_pages if page >= 0]


def test_rejected_drafts_beyond_a_chunk_keep_it() -> None:
    """Guessed tokens that reach into the next chunk do not make the engine forget the one they were guessed in."""
    limits = replace(LIMITS, vocab=2)
    loop = Loop(FakeExecutor(limits), Policy(speculate=6, prefix_cache=False))
    request = Request((0, 1) * 30, max_tokens=300)
    _, answer = start(loop, request)
    while loop.step():
        pass
    counters = loop.stats().counters
    assert counters.drafted_tokens > counters.accepted_tokens > 0
    assert answer == alone(request, limits)


def test_the_second_turn_finds_the_first_one_as_far_as_its_local_pages_are_there() -> None:
    loop = Loop(FakeExecutor(LIMITS))
    request = Request(prompt(150), max_tokens=1)
    start(loop, request)
    while loop.step():
        pass
    assert loop.stats().local_pages_cached == 4  # of the blocks that are full: 0 to 3
    again, answer = start(loop, replace(request, max_tokens=5))
    while loop.step():
        pass
    assert again.cached_tokens == 128 and answer == alone(replace(request, max_tokens=5))
    other = Request(prompt(500, 1), max_tokens=1)  # takes what the first one left
    start(loop, other)
    while loop.step():
        pass
    assert loop.stats().local_evictions > 0
    third, answer = start(loop, replace(request, max_tokens=5))
    while loop.step():
        pass
    # At 128 a chunk begins, which needs none of the pages that are gone.
    assert third.cached_tokens == 128 and answer == alone(replace(request, max_tokens=5))


def test_a_sequence_waits_for_local_pages_and_goes_on_when_some_come_back() -> None:
    limits = replace(LIMITS, local_pages=4)
    loop = Loop(FakeExecutor(limits), Policy(prefix_cache=False))
    first, _ = start(loop, Request(prompt(60), max_tokens=50))
    loop.step()
    second, _ = start(loop, Request(prompt(60, 1), max_tokens=50))
    loop.step()
    assert loop.scheduler.running == [first], "two pages are left, and a third is wanted for growth"
    while first.computed < 64:
        loop.step()
    loop.step()
    assert second in loop.scheduler.running and loop.stats().preemptions == 0
    while loop.step():
        pass
    assert loop.stats().counters.finished == 2


def test_the_last_in_order_gives_up_its_local_pages() -> None:
    window = LayerPlan(window=100)
    limits = replace(LIMITS, local_pages=6, local=window)
    loop = Loop(FakeExecutor(limits), Policy(prefix_cache=False))
    requests = [Request(prompt(20, seed), max_tokens=150) for seed in range(3)]
    answers = [start(loop, request)[1] for request in requests]
    while loop.step():
        pass
    assert loop.stats().preemptions > 0
    assert answers == [alone(request, limits) for request in requests]


def test_a_longer_step_is_not_worth_the_local_pages_of_others() -> None:
    limits = replace(LIMITS, local_pages=7, local=LayerPlan(window=500), context=224)
    loop = Loop(FakeExecutor(limits), Policy(prefix_cache=False))
    start(loop, Request(prompt(20)))
    loop.step()
    prompted, _ = start(loop, Request(prompt(130, 1)))
    loop.step()
    assert prompted.computed == 95
    counts = [item.count for item in loop.scheduler.plan()]
    assert counts == [1, 128 - 95], "two more tokens would take one of the last two pages"
    assert loop.scheduler.cache.available_local == 2


def test_fewer_local_pages_than_the_reach_bound_the_sequence() -> None:
    limits = replace(LIMITS, local_pages=3, local=LayerPlan(window=500))
    assert capacity(limits) == 96 and capacity(replace(limits, local_pages=17)) == 2048
    with pytest.raises(ContextOverflow, match="3 pages for the layers of bounded reach, which hold 96"):
        check(Request(prompt(97)), limits)


# Images --------------------------------------------------------------------------------------------------------------


def image(*positions: int, key: int = 1) -> Image:
    return Image(None, (1, 1), positions, bytes([key]) * 32)


def test_images_reach_the_executor_and_tell_prefixes_apart() -> None:
    loop = Loop(FakeExecutor(LIMITS))
    tokens = prompt(150)
    shown = [(), (image(5, 6),), (image(5, 6, key=2),), (image(5, 6), image(140)), (image(5, 6), image(140, key=3))]
    requests = [Request(tokens, max_tokens=6, images=images) for images in shown]
    answers, cached = [], []
    for request in requests:
        sequence, answer = start(loop, request)
        while loop.step():
            pass
        answers.append(answer)
        cached.append(sequence.cached_tokens)
    assert answers == [alone(request) for request in requests]
    assert len(set(map(tuple, answers))) == len(shown)
    assert cached == [0, 0, 0, 128, 128], "the same image before the last page is the same prefix"


def test_an_image_comes_with_the_chunk_that_reaches_it() -> None:
    loop = Loop(FakeExecutor(LIMITS))
    sequence, _ = start(loop, Request(prompt(150), images=(image(5), image(100))))
    assert [len(sequence.chunk(count).images) for count in (5, 6, 100, 101)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((image(),), "image 0 has no position"),
        ((image(3, 3),), "image 0 is at position 3, not behind position 3"),
        ((image(3, 5), image(4)), "image 1 is at position 4, not behind position 5"),
        ((image(-1),), "image 0 is at position -1"),
        ((image(3), image(8, 10)), "image 1 is at position 10: the prompt has 10 tokens"),
    ],
)
def test_images_that_cannot_be_are_refused(images: tuple[Image, ...], message: str) -> None:
    for request in (Request(prompt(10), images=images), Evaluation(prompt(10), "logits", images=images)):
        with pytest.raises(UsageError, match=message):
            check(request, LIMITS)


def test_images_where_nobody_can_show_them_are_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedModel, match="runtime='torch'"):
        check(Request(prompt(10), images=(image(3),)), replace(LIMITS, images=False))


def test_more_image_tokens_than_the_context_holds() -> None:
    tokens = prompt(2100)
    shown = (image(*range(1000)), image(*range(1001, 2050)))
    with pytest.raises(ContextOverflow, match=r"2100 tokens \(2049 of them for 2 images\).*fewer or smaller images"):
        check(Request(tokens, images=shown), LIMITS)


def test_a_token_that_stands_for_an_image_has_no_score() -> None:
    limits = replace(LIMITS, rows=105)
    tokens = (1, 2, 99, 3, 4)
    check(Request(tokens, images=(image(2),)), limits)
    check(Evaluation(tokens, "scores", first=3, images=(image(2),)), limits)
    with pytest.raises(UsageError, match="token 2 is 99, which is read but never written"):
        check(Evaluation(tokens, "scores", images=(image(2),)), limits)
