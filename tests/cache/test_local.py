"""The prefix cache where layers of bounded reach have local pages, and where pages hold images."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.cache.pages import PagePool
from herder.cache.prefix import Node, PrefixCache, content
from herder.core.batch import PAGE_TOKENS
from herder.core.config import LayerPlan
from herder.core.request import Image

WINDOW = LayerPlan(window=PAGE_TOKENS + 2)  # a page's first position sees the one before, and one of the page before it
CHUNK = LayerPlan(chunk=3 * PAGE_TOKENS)


def text(*values: int) -> array[int]:
    return array("i", [value for value in values for _ in range(PAGE_TOKENS)])


def cache_of(local: LayerPlan, pages: int = 16, local_pages: int = 16) -> PrefixCache:
    return PrefixCache(PagePool(pages), PagePool(local_pages), local)


def publish(cache: PrefixCache, *values: int, held: tuple[int, ...] = ()) -> tuple[list[Node], array[int]]:
    """A chain whose caller still holds the local pages of the blocks `held`."""
    chain: list[Node] = []
    table = array("i")
    for index in range(len(values)):
        page = content(text(*values), index)
        chain.append(cache.publish(chain[-1] if chain else None, page, cache.allocate(), cache.allocate_local()))
        table.append(chain[-1].local)
    for index, node in enumerate(chain):
        if index not in held:
            cache.release_local(node)
            table[index] = -1
    return chain, table


def hit(cache: PrefixCache, *values: int) -> tuple[int, list[bool]]:
    """Pages found, and which of their local pages are held; all given back."""
    chain = cache.match(text(*values), len(values))
    table = cache.hold_local(chain)
    cache.release(chain, table)
    return len(chain), [page >= 0 for page in table]


def test_a_hit_holds_what_the_next_position_sees_and_no_more() -> None:
    cache = cache_of(WINDOW)
    cache.release(*publish(cache, 1, 2, 3, 4))
    assert hit(cache, 1, 2, 3, 4) == (4, [False, False, True, True])
    assert hit(cache, 1, 2, 9) == (2, [True, True])
    chunks = cache_of(CHUNK)
    chunks.release(*publish(chunks, 1, 2, 3, 4, 5))
    assert hit(chunks, 1, 2, 3) == (3, [False] * 3), "the next position begins a chunk"
    assert hit(chunks, 1, 2, 3, 4, 5) == (5, [False, False, False, True, True])


def test_a_hit_is_cut_back_to_what_is_still_whole() -> None:
    cache = cache_of(WINDOW, local_pages=5)
    cache.release(*publish(cache, 1, 2, 3, 4, 5))
    for evicted, found in ((1, 5), (2, 5), (3, 5), (4, 0)):  # the oldest first
        taken = cache.allocate_local()
        assert cache.local_evictions == evicted and cache.cached == 5
        assert hit(cache, 1, 2, 3, 4, 5)[0] == found
        assert cache.available_local == 5 - evicted
        del taken
    chunks = cache_of(CHUNK, local_pages=5)
    chunks.release(*publish(chunks, 1, 2, 3, 4, 5))
    for found in (5, 5, 5, 4, 3):  # the deepest of those used together first; a chunk's beginning needs nothing
        chunks.allocate_local()
        assert hit(chunks, 1, 2, 3, 4, 5)[0] == found


def test_a_local_page_may_go_while_its_node_is_in_use() -> None:
    cache = cache_of(WINDOW, local_pages=3)
    chain, table = publish(cache, 1, 2, 3, held=(1, 2))
    assert cache.available_local == 1
    page = cache.allocate_local()
    assert chain[0].local == -1 and cache.available_local == 0
    with pytest.raises((AssertionError, KeyError)):
        cache.allocate_local()
    cache.local_pool.release(page)
    cache.release(chain, table)
    assert cache.available_local == 3
    cache.clear()
    assert cache.pool.free == cache.pool.size and cache.local_pool.free == 3


def test_a_node_that_lost_its_local_page_gets_the_one_computed_again() -> None:
    cache = cache_of(WINDOW, local_pages=2)
    cache.release(*publish(cache, 1))
    taken = [cache.allocate_local(), cache.allocate_local()]
    assert cache.match(text(1), 1) == []
    cache.local_pool.release(taken[0])
    local = cache.allocate_local()
    node = cache.publish(None, content(text(1), 0), cache.allocate(), local)
    assert node.local == local and cache.local_pool.references(local) == 2
    # Computed once more by somebody else: that page is given back, and the cache's own takes its place.
    cache.local_pool.release(taken[1])
    again = cache.publish(None, content(text(1), 0), cache.allocate(), cache.allocate_local())
    assert again is node and cache.local_pool.references(local) == 3 and cache.local_pool.free == 1


def test_a_page_computed_again_behind_a_lost_one_is_in_use_again() -> None:
    cache = cache_of(WINDOW, local_pages=4)
    cache.release(*publish(cache, 1, 2))
    taken = [cache.allocate_local() for _ in range(3)]  # the last one was block 0's
    for page in taken[:2]:
        cache.local_pool.release(page)
    assert cache.match(text(1, 2), 2) == []
    chain: list[Node] = []
    for index in range(2):
        page = content(text(1, 2), index)
        chain.append(cache.publish(chain[-1] if chain else None, page, cache.allocate(), cache.allocate_local()))
    assert cache.cached == 2 and cache.available_local == 1
    cache.release(chain, array("i", [node.local for node in chain]))
    assert cache.available_local == 3


def test_evicting_a_node_gives_its_local_page_back() -> None:
    cache = cache_of(WINDOW, pages=2, local_pages=2)
    cache.release(*publish(cache, 1, 2))
    cache.allocate()
    assert (cache.cached, cache.cached_local, cache.local_pool.free) == (1, 1, 1)


@given(st.data())
def test_no_local_page_is_read_after_it_was_given_away(data: st.DataObject) -> None:
    """Sequences that compute, share, forget and end, beside a model that knows what each local page holds."""
    local = data.draw(st.sampled_from([WINDOW, CHUNK, LayerPlan(window=1), LayerPlan(chunk=40)]), label="local")
    cache = cache_of(local, data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8)))
    holds: dict[int, tuple[int, ...]] = {}  # local page -> the prefix whose last block it is
    held: list[tuple[list[Node], array[int], tuple[int, ...]]] = []

    def first(length: int) -> int:
        return local.first_visible(length * PAGE_TOKENS) // PAGE_TOKENS

    for _ in range(data.draw(st.integers(1, 25), label="operations")):
        if held and data.draw(st.booleans(), label="end one"):
            chain, table, _ = held.pop(data.draw(st.integers(0, len(held) - 1)))
            cache.release(chain, table)
            continue
        values = tuple(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=5), label="values"))
        tokens = text(*values)
        known: list[Node] = []  # as deep as the tree goes, by brute force
        for index in range(len(values)):
            key = (known[-1].number if known else 0, content(tokens, index))
            if key not in cache._nodes:
                break
            known.append(cache._nodes[key])
        whole = [n for n in range(len(known) + 1) if all(node.local >= 0 for node in known[first(n) : n])]
        chain = cache.match(tokens, len(values))
        table = cache.hold_local(chain)
        assert len(chain) == max(whole)
        for index, page in enumerate(table):
            assert (page >= 0) == (index >= first(len(chain)))
            assert page < 0 or holds[page] == values[: index + 1]
        for index in range(len(chain), len(values)):
            if not (cache.available and cache.available_local):
                break
            page = cache.allocate_local()
            holds[page] = values[: index + 1]
            node = cache.publish(chain[-1] if chain else None, content(tokens, index), cache.allocate(), page)
            chain.append(node)
            table.append(node.local)
            for block in range(first(index + 1)):
                if table[block] >= 0:
                    cache.release_local(chain[block])
                    table[block] = -1
        held.append((chain, table, values))
        for nodes, pages, prefix in held:
            for index, page in enumerate(pages):
                assert page < 0 or (page == nodes[index].local and holds[page] == prefix[: index + 1])
        in_use = {page for _, pages, _ in held for page in pages if page >= 0}
        assert cache.local_pool.size == len(in_use) + cache.available_local
        assert cache.pool.size == len({node.page for nodes, _, _ in held for node in nodes}) + cache.available
    for chain, table, _ in held:
        cache.release(chain, table)
    cache.clear()
    assert cache.pool.free == cache.pool.size and cache.local_pool.free == cache.local_pool.size


# Images --------------------------------------------------------------------------------------------------------------


def image(key: int, *positions: int) -> Image:
    return Image(None, (1, 1), positions, bytes([key]) * 32)


def test_a_page_is_named_by_the_images_in_it_and_where_they_are() -> None:
    tokens = text(1, 1)
    shown = [(), (image(1, 3, 4),), (image(2, 3, 4),), (image(1, 3, 5),), (image(1, 3), image(1, 4))]
    assert len({content(tokens, 0, images) for images in shown}) == len(shown)
    assert content(tokens, 0, (image(1, 40),)) == content(tokens, 0), "an image further on changes nothing before it"
    assert content(tokens, 1, (image(1, 3),)) == content(tokens, 1), "nor one that the chain has already"
    assert content(tokens, 1, (image(1, 30, 33),)) != content(tokens, 1, (image(1, 30, 34),))


def test_what_lies_behind_another_image_is_another_page() -> None:
    cache = PrefixCache(PagePool(8))
    tokens, chain = text(1, 2), []
    for index in range(2):
        chain.append(
            cache.publish(chain[-1] if chain else None, content(tokens, index, (image(1, 5),)), cache.allocate())
        )
    assert cache.match(tokens, 2, (image(1, 5),)) == chain
    for images in ((), (image(2, 5),), (image(1, 6),), (image(1, 5), image(1, 6))):
        assert cache.match(tokens, 2, images) == []
    assert cache.match(tokens, 2, (image(1, 5), image(3, 40))) == chain[:1]
