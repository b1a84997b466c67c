"""Groups are served by turns: a crowd delays a newcomer by one request, and nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from herder.core.batch import Limits
from herder.core.request import Request
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.turns import Turns
from herder.runtime.fake import FakeExecutor

ONE_BY_ONE = Limits(pages=64, context=256, batch_tokens=256, batch_chunks=1, vocab=97)


def served(requests: list[tuple[str, int]]) -> list[int]:
    """The order in which requests (group, prompt tokens), all there at once, have their turn on an executor of one."""
    loop = Loop(FakeExecutor(ONE_BY_ONE), Policy())
    order: list[int] = []
    for number, (group, length) in enumerate(requests):
        prompt = tuple((number + i) % 90 for i in range(length))
        request = Request(prompt, max_tokens=2, group=group)
        sequence = loop.add(request, lambda event: None, 0)
        loop_numbers[sequence.arrival] = number
    while not loop.idle:
        loop.step()
        for sequence in loop.scheduler.running:
            number = loop_numbers[sequence.arrival]
            if number not in order:
                order.append(number)
    return order


loop_numbers: dict[int, int] = {}


def test_a_crowd_delays_a_newcomer_by_one() -> None:
    crowd = [("crowd", 40)] * 9
    assert served([*crowd, ("alone", 40)]) == [0, 9, *range(1, 9)]


def test_one_group_is_first_come_first_served() -> None:
    assert served([("", 30), ("", 100), ("", 5), ("", 60)]) == [0, 1, 2, 3]


def test_two_crowds_alternate() -> None:
    assert served([("a", 20)] * 3 + [("b", 20)] * 3) == [0, 3, 1, 4, 2, 5]


def test_long_prompts_count_for_more() -> None:
    turns = Turns()
    long = [turns.begin("long", 5000) for _ in range(2)]
    short = [turns.begin("short", 10) for _ in range(8)]
    assert sorted([*long, *short]).index(long[1]) == 9


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500), st.booleans()), max_size=40))
def test_the_clock_only_goes_forward_and_remembers_little(events: list[tuple[str, int, bool]]) -> None:
    turns, waiting, last = Turns(), list[tuple[int, int]](), 0
    of: dict[str, int] = {}
    for number, (group, tokens, admit) in enumerate(events):
        start = turns.begin(group, tokens)
        assert start >= last and start >= of.get(group, 0)  # nobody begins in the past, nor before its own group
        of[group] = start
        waiting.append((start, number))
        if admit:
            waiting.sort()
            last = waiting.pop(0)[0]
            turns.served(last)
    assert set(turns._ends) <= set(of)
