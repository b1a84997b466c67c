"""The page pool: which pages of an executor's KV store are free, and how many hold on to the others.

A page is a number. What lies in it is the executor's business; the pool only counts references.
"""

from __future__ import annotations

from array import array

from herder.core.batch import PAGE_TOKENS
from herder.core.config import LayerPlan


def pages_for(tokens: int) -> int:
    """Pages needed to hold the KV entries of `tokens` positions."""
    return -(-tokens // PAGE_TOKENS)


def reach_pages(local: LayerPlan) -> int:
    """The most pages that one position of a layer of bounded reach sees, its own among them.

    A reach of n positions touches ceil((n - 1) / PAGE_TOKENS) + 1 pages wherever it begins; a chunk of whole pages
    begins where a page does.
    """
    if local.chunk is not None and local.chunk % PAGE_TOKENS == 0:
        return local.chunk // PAGE_TOKENS
    reach = local.window or local.chunk
    assert reach is not None, "a layer without bounds has no reach"
    return pages_for(reach - 1) + 1


class PagePool:
    """`pages` pages, numbered from 0, each free or referred to by one or more holders.

    Misuse (allocating from an empty pool, releasing a free page) is a bug of ours and fails an assertion.
    """

    __slots__ = ("_free", "_references")

    def __init__(self, pages: int) -> None:
        self._references = array("i", bytes(4 * pages))
        self._free = list(range(pages - 1, -1, -1))  # a stack: a page just released is the one still in the CPU's cache

    @property
    def size(self) -> int:
        return len(self._references)

    @property
    def free(self) -> int:
        return len(self._free)

    def references(self, page: int) -> int:
        return self._references[page]

    def allocate(self) -> int:
        """A free page, with one reference."""
        assert self._free, "allocate from an empty page pool"
        page = self._free.pop()
        assert self._references[page] == 0, f"page {page} was free and referred to"
        self._references[page] = 1
        return page

    def retain(self, page: int) -> int:
        """One more reference to a page in use; returns how many it has now."""
        count = self._references[page]
        assert count > 0, f"retain of the free page {page}"
        self._references[page] = count + 1
        return count + 1

    def release(self, page: int) -> int:
        """One reference less; the last one frees the page. Returns how many are left."""
        count = self._references[page] - 1
        assert count >= 0, f"page {page} was released twice"
        self._references[page] = count
        if count == 0:
            self._free.append(page)
        return count
