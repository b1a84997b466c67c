from __future__ import annotations

import pytest

from herder.cache.pages import PagePool, pages_for
from herder.core.batch import PAGE_TOKENS


def test_pages_for_rounds_up() -> None:
    counts = [pages_for(n) for n in (0, 1, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1)]
    assert counts == [0, 1, 1, 1, 2]


def test_every_page_is_handed_out_once() -> None:
    pool = PagePool(5)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.free == 0
    with pytest.raises(AssertionError, match="empty page pool"):
        pool.allocate()


def test_the_last_reference_frees() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    assert pool.retain(page) == 2
    assert pool.release(page) == 1
    assert pool.free == 0
    assert pool.release(page) == 0
    assert pool.free == 1


def test_releasing_a_free_page_is_a_bug() -> None:
    pool = PagePool(2)
    page = pool.allocate()
    pool.release(page)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(page)
    with pytest.raises(AssertionError, match="free page"):
        pool.retain(page)
