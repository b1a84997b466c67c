from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.cache.pages import PagePool
from herder.cache.prefix import Node, PrefixCache, content
from herder.core.batch import PAGE_TOKENS


def block(value: int, pages: int = 1) -> array[int]:
    return array("i", [value] * (PAGE_TOKENS * pages))


def page_of(value: int) -> bytes:
    return content(block(value), 0)


def publish(cache: PrefixCache, *values: int) -> list[Node]:
    chain: list[Node] = []
    for value in values:
        chain.append(cache.publish(chain[-1] if chain else None, page_of(value), cache.allocate()))
    return chain


def test_a_chain_is_found_as_far_as_it_agrees() -> None:
    cache = PrefixCache(PagePool(8))
    chain = publish(cache, 1, 2, 3)
    tokens = block(1) + block(2) + block(9)
    found = cache.match(tokens, 3)
    assert [node.page for node in found] == [node.page for node in chain[:2]]
    assert cache.match(tokens, 1) == chain[:1]


def test_the_same_page_under_another_parent_is_another_page() -> None:
    cache = PrefixCache(PagePool(8))
    publish(cache, 1, 7)
    publish(cache, 2)
    assert len(cache.match(block(2) + block(7), 2)) == 1


def test_ids_are_compared_and_not_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colliding(bytes):
        def __hash__(self) -> int:
            return 1

    cache = PrefixCache(PagePool(4))
    first = cache.publish(None, page_of(1), cache.allocate())
    # The same dictionary slot for every key: only equality can tell them apart.
    node = cache._nodes.pop(first.key)
    cache._nodes[(0, Colliding(first.key[1]))] = node
    other = (0, Colliding(block(2).tobytes()))
    assert hash(other) == hash((0, Colliding(first.key[1])))
    assert cache._nodes.get(other) is None
    assert cache._nodes.get((0, Colliding(first.key[1]))) is node


def test_publishing_what_is_known_gives_the_page_back() -> None:
    pool = PagePool(4)
    cache = PrefixCache(pool)
    (first,) = publish(cache, 1)
    duplicate = pool.allocate()
    node = cache.publish(None, page_of(1), duplicate)
    assert node is first
    assert pool.references(duplicate) == 0
    assert pool.references(first.page) == 3  # the cache and two holders


def test_pages_in_use_are_never_evicted() -> None:
    pool = PagePool(3)
    cache = PrefixCache(pool)
    held = publish(cache, 1, 2)
    idle = publish(cache, 3)
    cache.release(idle)
    assert cache.available == 1
    assert cache.allocate() == idle[0].page
    assert cache.available == 0
    assert cache.match(block(1) + block(2), 2) == held
    with pytest.raises((AssertionError, KeyError)):
        cache.allocate()


def test_eviction_takes_the_least_recently_used_and_children_first() -> None:
    pool = PagePool(4)
    cache = PrefixCache(pool)
    old, new = publish(cache, 1, 2), publish(cache, 3, 4)
    cache.release(old)
    cache.release(new)
    cache.release(cache.match(block(1) + block(2), 2))  # used again: `new` is the older one now
    order = [cache.allocate() for _ in range(4)]
    assert order == [new[1].page, new[0].page, old[1].page, old[0].page]
    assert cache.cached == 0


@given(st.data())
def test_nothing_leaks_and_matches_are_exact(data: st.DataObject) -> None:
    pool = PagePool(data.draw(st.integers(1, 8), label="pages"))
    cache = PrefixCache(pool)
    contents: dict[int, tuple[int, ...]] = {}  # page -> the whole prefix that was computed into it
    held: list[list[Node]] = []
    for _ in range(data.draw(st.integers(1, 30), label="operations")):
        if held and data.draw(st.booleans(), label="release"):
            cache.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
            continue
        values = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4), label="values")
        tokens = array("i", [value for value in values for _ in range(PAGE_TOKENS)])
        chain = cache.match(tokens, len(values))
        for index, node in enumerate(chain):
            assert contents[node.page] == tuple(values[: index + 1])
        for index in range(len(chain), len(values)):
            if not cache.available:
                break
            page = cache.allocate()
            contents[page] = tuple(values[: index + 1])
            chain.append(cache.publish(chain[-1] if chain else None, page_of(values[index]), page))
        held.append(chain)
        in_use = {node.page for chain in held for node in chain}
        assert pool.size == len(in_use) + cache.available
        for page in in_use:
            assert pool.references(page) == 1 + sum(node.page == page for chain in held for node in chain)
    for chain in held:
        cache.release(chain)
    assert cache.available == pool.size
    cache.clear()
    assert pool.free == pool.size and cache.cached == 0
