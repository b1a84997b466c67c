"""Limits per minute: never exceeded in any minute, no request held back longer than needed, every debt paid."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from herder.serve.limits import MINUTE, RequestWindow, TokenWindow

# Eighths of seconds are exact in floating point, and so are their sums: the tests need no tolerance.
GAPS = st.lists(st.integers(0, 400).map(lambda eighths: eighths / 8), min_size=1, max_size=80)
MOMENT = 2.0**-20
LIMIT = st.integers(1, 12)


@given(GAPS, LIMIT)
def test_no_minute_has_more_requests_than_the_limit(gaps: list[float], limit: int) -> None:
    window, now, admitted = RequestWindow(), 0.0, []
    for gap in gaps:
        now += gap
        if window.wait(limit, now) == 0.0:
            window.add(now)
            admitted.append(now)
    for begin in admitted:
        assert sum(begin <= at < begin + MINUTE for at in admitted) <= limit


@given(GAPS, LIMIT)
def test_requests_wait_exactly_as_long_as_they_are_told(gaps: list[float], limit: int) -> None:
    window, now = RequestWindow(), 0.0
    for gap in gaps:
        now += gap
        wait = window.wait(limit, now)
        if wait:
            assert 0 < wait <= MINUTE
            assert window.wait(limit, now + 0.99 * wait) > 0
            now += wait + MOMENT
        assert window.wait(limit, now) == 0.0
        window.add(now)


def test_a_limit_that_was_lowered_holds_at_once() -> None:
    window = RequestWindow()
    for now in (0.0, 1.0, 2.0, 3.0):
        window.add(now)
    assert window.wait(4, 4.0) == 56.0
    assert window.wait(2, 4.0) == 58.0
    assert window.wait(5, 4.0) == 0.0


@given(st.lists(st.tuples(st.floats(0.0, 90.0), st.integers(0, 4000)), min_size=1, max_size=60), st.integers(1, 1000))
def test_tokens_stay_below_the_limit_on_the_average(requests: list[tuple[float, int]], limit: int) -> None:
    """Requests one after another, each as early as it may: what was counted until one begins is at most what its time
    allows, and a minute's worth on top."""
    window, now, counted = TokenWindow(), 0.0, 0
    for gap, tokens in requests:
        now += gap
        wait = window.wait(limit, now)
        assert (wait > 0) == (window.wait(limit, now + 0.99 * wait) > 0)
        now += wait + (MOMENT if wait else 0.0)
        assert window.wait(limit, now) == 0.0
        assert counted <= limit * (now / MINUTE + 1) + MOMENT
        window.add(tokens, limit, now)
        counted += tokens


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 1000))
def test_no_minute_has_more_tokens_than_the_limit_but_for_the_last_request(sizes: list[int], limit: int) -> None:
    window, now, spent = TokenWindow(), 0.0, []
    for size in sizes:
        if window.wait(limit, now) == 0.0:
            assert sum(tokens for at, tokens in spent if at > now - MINUTE) < limit
            window.add(size, limit, now)
            spent.append((now, size))
        now += 7.0


def test_requests_under_way_together_pay_for_what_they_used_beyond_the_limit() -> None:
    window = TokenWindow()
    for _ in range(5):  # admitted before any of them had ended
        window.add(1000, 1000, 0.0)
    assert window.wait(1000, 0.0) == 5 * MINUTE  # 5 minutes' worth
    assert window.wait(1000, 299.0) == 1.0
    assert window.wait(1000, 300.0) == 0.0


def test_nothing_used_counts_nothing() -> None:
    window = TokenWindow()
    window.add(0, 10, 0.0)
    assert window.wait(10, 0.0) == 0.0
    assert window.wait(1, 0.0) == 0.0
