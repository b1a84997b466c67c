"""What the scheduler promises, one case each. The whole is covered by test_guarantee.py."""

from __future__ import annotations

import pytest

from herder.core.batch import PAGE_TOKENS, Limits
from herder.core.errors import ContextOverflow, UsageError
from herder.core.request import Evaluation, NewToken, Request, Sampling
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.sequence import Sequence, check
from herder.runtime.fake import FakeExecutor

LIMITS = Limits(pages=32, context=512, batch_tokens=256, batch_chunks=8, vocab=97)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple((seed * 31 + i * i) % 97 for i in range(length))


def loop_with(limits: Limits = LIMITS, **policy: float) -> Loop:
    return Loop(FakeExecutor(limits), Policy(**policy))  # type: ignore[arg-type]


def add(loop: Loop, request: Request | Evaluation) -> Sequence:
    return loop.add(request, lambda event: None, 0)


def plan(loop: Loop) -> list[tuple[Sequence, int]]:
    return [(item.sequence, item.count) for item in loop.scheduler.plan()]


def test_a_lone_prompt_gets_the_whole_batch() -> None:
    loop = loop_with(prefill_tokens=16)
    sequence = add(loop, Request(prompt(300)))
    assert plan(loop) == [(sequence, 256)]


def test_prompts_get_a_bounded_share_while_others_decode() -> None:
    loop = loop_with(prefill_tokens=16)
    first = add(loop, Request(prompt(10)))
    loop.step()
    second = add(loop, Request(prompt(100, 1)))
    for _ in range(6):
        assert plan(loop) == [(first, 1), (second, 16)]
        loop.step()
    assert plan(loop) == [(first, 1), (second, 4)]


def test_the_share_of_prompts_follows_the_pace_of_the_machine() -> None:
    loop = loop_with(prefill_seconds=0.1, prefill_tokens=64)
    first = add(loop, Request(prompt(10)))
    loop.step()
    second = add(loop, Request(prompt(200, 1)))
    scheduler = loop.scheduler

    def share() -> int:
        (_, (sequence, count)) = plan(loop)
        assert sequence is second
        return count

    assert plan(loop) == [(first, 1), (second, 64)]
    scheduler.measured(15, 60)  # too few tokens to tell
    assert share() == 64
    scheduler.measured(100, 0.4)
    assert share() == 25
    for _ in range(40):
        scheduler.measured(100, 0.2)
    assert share() in (49, 50)
    for _ in range(40):
        scheduler.measured(100, 10)
    assert share() == 16
    for _ in range(80):
        scheduler.measured(100, 0.001)
    assert share() == 64


def test_first_come_first_served_within_a_priority() -> None:
    loop = loop_with()
    late = [add(loop, Request(prompt(100, i), priority=1)) for i in range(2)]
    soon = [add(loop, Request(prompt(100, i + 2), priority=0)) for i in range(2)]
    assert plan(loop) == [(soon[0], 100), (soon[1], 100), (late[0], 56)]


def test_nobody_overtakes_the_head_of_the_line() -> None:
    loop = loop_with(Limits(pages=4, context=128, batch_tokens=256, batch_chunks=8, vocab=97))
    first = add(loop, Request(prompt(60)))
    add(loop, Request(prompt(90, 1)))
    add(loop, Request(prompt(5, 2)))
    assert plan(loop) == [(first, 60)]


def test_the_last_in_order_gives_up_its_pages() -> None:
    loop = loop_with(Limits(pages=4, context=128, batch_tokens=256, batch_chunks=8, vocab=97))
    first, second = add(loop, Request(prompt(20))), add(loop, Request(prompt(20, 1)))
    while loop.scheduler.preemptions == 0:
        loop.step()
    assert loop.scheduler.running == [first]
    assert loop.scheduler.waiting[0][1] is second
    # Two pages each were in use, and the first needs its third.
    assert len(first.tokens) == 2 * PAGE_TOKENS + 2  # the one that needed the page has been computed


def test_a_better_priority_displaces_a_worse_one() -> None:
    loop = loop_with(Limits(pages=4, context=128, batch_tokens=256, batch_chunks=8, vocab=97))
    worse = add(loop, Request(prompt(100), priority=5))
    loop.step()
    better = add(loop, Request(prompt(100, 1), priority=1))
    assert plan(loop) == [(better, 100)]
    assert loop.scheduler.waiting[0][1] is worse


def test_equal_priorities_are_not_displaced() -> None:
    loop = loop_with(Limits(pages=4, context=128, batch_tokens=256, batch_chunks=8, vocab=97))
    first = add(loop, Request(prompt(100)))
    loop.step()
    add(loop, Request(prompt(100, 1)))
    assert plan(loop) == [(first, 1)]


def test_a_second_turn_finds_the_first_one_and_its_answer() -> None:
    loop = loop_with()
    answer: list[int] = []
    request = Request(prompt(70), max_tokens=30)
    loop.add(request, lambda event: answer.append(event.token) if isinstance(event, NewToken) else None, 0)
    while loop.step():
        pass
    again = add(loop, Request(request.prompt + tuple(answer) + prompt(9, 5)))
    # 99 positions were computed: the last token was never fed back. Three full pages of them are kept.
    assert plan(loop) == [(again, 109 - 3 * PAGE_TOKENS)]
    assert again.cached_tokens == 3 * PAGE_TOKENS


@pytest.mark.parametrize("length", [PAGE_TOKENS, PAGE_TOKENS + 1, 3 * PAGE_TOKENS])
def test_the_last_prompt_token_is_always_computed(length: int) -> None:
    loop = loop_with()
    for _ in range(2):
        add(loop, Request(prompt(length), max_tokens=1))
        while loop.step():
            pass
    last = add(loop, Request(prompt(length), max_tokens=1))
    ((_, count),) = plan(loop)
    assert count == (length - 1) % PAGE_TOKENS + 1
    assert last.cached_tokens == length - count


def test_scores_may_use_the_cache_before_the_first_scored_token_only() -> None:
    loop = loop_with()
    tokens = prompt(3 * PAGE_TOKENS)
    add(loop, Request(tokens, max_tokens=1))
    while loop.step():
        pass
    add(loop, Evaluation(tokens, "scores"))
    assert [count for _, count in plan(loop)] == [len(tokens) - 1]
    while loop.step():
        pass
    # Token 2 * PAGE_TOKENS is scored at the position before it, in the second page.
    add(loop, Evaluation(tokens, "scores", first=2 * PAGE_TOKENS))
    assert [count for _, count in plan(loop)] == [2 * PAGE_TOKENS - 1]


def test_logits_come_in_pieces_of_bounded_size() -> None:
    loop = loop_with(Limits(pages=32, context=512, batch_tokens=256, batch_chunks=8, vocab=1 << 20))
    add(loop, Evaluation(prompt(100), "logits", first=90))
    assert [count for _, count in plan(loop)] == [90 + 4]  # 2**22 values a step


def test_drafts_take_what_prompts_leave() -> None:
    loop = loop_with(speculate=4, prefill_tokens=16)
    repeating = add(loop, Request((1, 2, 3, 4, 5, 6, 7, 8) * 4, max_tokens=20))
    (item,) = loop.scheduler.plan()
    assert item.sequence is repeating and item.count == 32
    assert item.drafts is not None and list(item.drafts) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(()), "prompt is empty"),
        (Request((1, 97)), "token id 97 is outside this model's vocabulary"),
        (Request((1, -1)), "token id -1"),
        (Request((1,), max_tokens=0), "max_tokens is 0"),
        (Request((1,), sampling=Sampling(logit_bias=((97, 1.0),))), "logit_bias names token 97"),
        (Evaluation((1,), "scores"), "at least 2 are needed"),
        (Evaluation((1, 2), "logits", first=2), "first is 2"),
        (Evaluation((1, 2), "entropy"), "report is 'entropy'"),  # type: ignore[arg-type]
    ],
)
def test_what_can_never_run_is_refused_by_name(request_: Request | Evaluation, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(request_, LIMITS)


@pytest.mark.parametrize("pages", [32, 4])
def test_what_can_never_fit_is_refused_with_the_numbers(pages: int) -> None:
    limits = Limits(pages=pages, context=512, batch_tokens=256, batch_chunks=8, vocab=97)
    limit = min(512, pages * PAGE_TOKENS)
    check(Request(prompt(limit - 10), max_tokens=10), limits)
    check(Request(prompt(limit - 1)), limits)
    check(Evaluation(prompt(limit), "logits"), limits)
    for request in (
        Request(prompt(limit - 10), max_tokens=11),
        Request(prompt(limit)),
        Evaluation(prompt(limit + 1), "logits"),
    ):
        with pytest.raises(ContextOverflow, match=str(limit)) as refused:
            check(request, limits)
        assert refused.value.limit == limit
        given = request.prompt if isinstance(request, Request) else request.tokens
        assert refused.value.prompt_tokens == len(given)
        assert "\n" not in str(refused.value)
