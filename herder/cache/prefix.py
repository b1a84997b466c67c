"""The prefix cache: pages whose contents are known by the tokens they were computed from, shared by all sequences.

The KV entries of a page depend on every token and image up to the page's end, so a page is named by the chain that
leads to it: its own PAGE_TOKENS ids, the images that lie in it, and the node of the page before. A node's key is
(number of the parent node, that content as bytes), looked up in one dictionary; equality of keys compares the ids
themselves, so two prefixes with the same hash are never confused, and node numbers are never used twice.
Where prompts are computed with an arithmetic of their own (Limits.prompts_apart), entries depend on which tokens were
generated, too, and the content of a page says from where on its own were.

Only full pages are shared. A partially filled page is still being written by its one owner, and a reader would see
entries appear behind its back: it becomes sharable the moment its last position is computed.

A node holds one reference to its page, each sequence that uses it holds another. Nodes used by no sequence are idle;
they stay until pages run short and are then evicted least recently used first. A sequence holds the whole chain up to
its deepest node and lets go of it deepest first, so an idle parent is always younger than its idle children, and
eviction never cuts a chain in the middle.

Where layers of bounded reach have a pool of their own, a node may have a local page too: the same positions in those
layers. A sequence holds the local pages that its next position can see and no others, so a local page may be idle while
its node is in use; it is evicted on its own, least recently used first, and the node stays. A prefix of n tokens is
usable only if every block that first_visible(n) .. n - 1 touches still has its local page; match() cuts back to the
longest one that is.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

from herder.cache.pages import PagePool
from herder.core.batch import PAGE_TOKENS
from herder.core.config import LayerPlan
from herder.core.request import Image


class Node:
    """One full page in the cache. `number` is unique for the life of the cache. local: its local page, -1 without."""

    __slots__ = ("children", "key", "local", "number", "page", "parent")

    def __init__(self, number: int, key: tuple[int, bytes], page: int, local: int, parent: Node | None) -> None:
        self.number = number
        self.key = key
        self.page = page
        self.local = local
        self.parent = parent
        self.children = 0


def content(tokens: array[int], index: int, images: Sequence[Image] = (), generated: int | None = None) -> bytes:
    """What page `index` of a sequence holds, given the pages before it: its ids; for each image with positions in it
    the image's key, which of its positions those are, and where, counted from the page's beginning; and where the first
    generated token lies, if there is one. generated: position of the sequence's first; None: it makes no difference."""
    begin, end = index * PAGE_TOKENS, (index + 1) * PAGE_TOKENS
    ids = tokens[begin:end]
    assert len(ids) == PAGE_TOKENS, "only a full page can be shared"
    result = ids.tobytes()
    for image in images:
        first, last = (bisect_left(image.positions, bound) for bound in (begin, end))
        if first < last:
            places = array("i", [first, last, *(place - begin for place in image.positions[first:last])])
            result += image.key + places.tobytes()
    if generated is not None and generated < end:
        result += array("i", [max(0, generated - begin)]).tobytes()
    return result


class PrefixCache:
    """Hands out pages of `pool`, evicting idle cached pages when none is free; the same for local_pool, whose layers
    see what local.first_visible() says."""

    __slots__ = (
        "_count",
        "_idle",
        "_idle_local",
        "_local",
        "_nodes",
        "evictions",
        "local_evictions",
        "local_pool",
        "pool",
    )

    def __init__(self, pool: PagePool, local_pool: PagePool | None = None, local: LayerPlan | None = None) -> None:
        assert (local_pool is None) == (local is None)
        self.pool = pool
        self.local_pool = local_pool or PagePool(0)
        self.evictions = 0
        self.local_evictions = 0
        self._local = local
        self._count = 0
        self._nodes: dict[tuple[int, bytes], Node] = {}
        self._idle: OrderedDict[int, Node] = OrderedDict()  # by node number, least recently used first
        self._idle_local: OrderedDict[int, Node] = OrderedDict()  # nodes whose local page no sequence holds

    @property
    def available(self) -> int:
        """Pages that allocate() can still hand out: free ones and idle cached ones."""
        return self.pool.free + len(self._idle)

    @property
    def available_local(self) -> int:
        """The same of allocate_local()."""
        return self.local_pool.free + len(self._idle_local)

    @property
    def cached(self) -> int:
        """Pages the cache holds, idle or in use."""
        return len(self._nodes)

    @property
    def cached_local(self) -> int:
        """Local pages the cache holds, idle or in use."""
        return sum(node.local >= 0 for node in self._nodes.values())

    def allocate(self) -> int:
        """A page nobody else refers to. The caller has checked `available`."""
        if not self.pool.free:
            self._evict()
        return self.pool.allocate()

    def allocate_local(self) -> int:
        """A local page nobody else refers to. The caller has checked `available_local`."""
        if not self.local_pool.free:
            _, node = self._idle_local.popitem(last=False)
            self._drop_local(node)
            self.local_evictions += 1
        return self.local_pool.allocate()

    def match(
        self, tokens: array[int], pages: int, images: Sequence[Image] = (), generated: int | None = None
    ) -> list[Node]:
        """The longest usable cached chain over the first `pages` pages of tokens (generated: see content()), with a
        reference to each for the caller. Its local pages are held only after hold_local()."""
        found: list[Node] = []
        nodes, parent = self._nodes, 0
        for index in range(pages):
            node = nodes.get((parent, content(tokens, index, images, generated)))
            if node is None:
                break
            found.append(node)
            parent = node.number
        del found[self._whole(found) :]
        for node in found:
            self.pool.retain(node.page)
            self._idle.pop(node.number, None)
        return found

    def hold_local(self, chain: Sequence[Node]) -> array[int]:
        """A reference for the caller to each local page that the position after a matched chain can see: the block
        table of the chain, -1 for the others."""
        table = array("i", [-1]) * len(chain)
        if self._local is not None:
            first = self._local.first_visible(len(chain) * PAGE_TOKENS) // PAGE_TOKENS
            for index in range(first, len(chain)):
                node = chain[index]
                self.local_pool.retain(node.local)
                self._idle_local.pop(node.number, None)
                table[index] = node.local
        return table

    def publish(self, parent: Node | None, content: bytes, page: int, local: int = -1) -> Node:
        """Makes a full page sharable; the caller's references to `page` and `local` become those to the returned
        node's pages.

        content: see content(). parent: the node of the page before, None for the first page; the caller holds it.
        When the same prefix is in the cache already, `page` is released and the cached page takes its place: their
        contents are equal, since a token's KV entries depend on nothing but what comes before it. A cached node that
        has lost its local page gets the caller's.
        """
        key = (0 if parent is None else parent.number, content)
        node = self._nodes.get(key)
        if node is not None:
            assert node.page != page, f"page {page} was published twice"
            self.pool.release(page)
            self.pool.retain(node.page)
            self._idle.pop(node.number, None)
            if local >= 0:
                if node.local >= 0:
                    self.local_pool.release(local)
                    self._idle_local.pop(node.number, None)
                else:
                    node.local = local
                self.local_pool.retain(node.local)
            return node
        self._count += 1
        node = self._nodes[key] = Node(self._count, key, page, local, parent)
        if parent is not None:
            parent.children += 1
        self.pool.retain(page)
        if local >= 0:
            self.local_pool.retain(local)
        return node

    def release(self, chain: Sequence[Node], local_pages: Sequence[int] = ()) -> None:
        """Gives up the caller's references to a chain (root first) and to the local pages of its block table."""
        for index in range(len(chain) - 1, -1, -1):
            node = chain[index]
            if index < len(local_pages) and local_pages[index] >= 0:
                self.release_local(node)
            if self.pool.release(node.page) == 1:
                self._idle[node.number] = node

    def release_local(self, node: Node) -> None:
        """Gives up the caller's reference to the local page of a node that it holds."""
        if self.local_pool.release(node.local) == 1:
            self._idle_local[node.number] = node

    def clear(self) -> None:
        """Evicts everything that no sequence uses."""
        while self._idle:
            self._evict()
        while self._idle_local:
            self._drop_local(self._idle_local.popitem()[1])

    def _whole(self, chain: Sequence[Node]) -> int:
        """How many nodes of a chain make the longest prefix whose local pages are there."""
        if self._local is None:
            return len(chain)
        whole = run = 0  # `run`: the first of the nodes up to here that all have their local pages
        for length, node in enumerate(chain, 1):
            if node.local < 0:
                run = length
            if run <= self._local.first_visible(length * PAGE_TOKENS) // PAGE_TOKENS:
                whole = length
        return whole

    def _evict(self) -> None:
        _, node = self._idle.popitem(last=False)
        assert node.children == 0, f"evicting node {node.number} would cut off its children"
        if node.parent is not None:
            node.parent.children -= 1
        del self._nodes[node.key]
        left = self.pool.release(node.page)
        assert left == 0, f"page {node.page} was idle and in use"
        if node.local >= 0:
            del self._idle_local[node.number]
            self._drop_local(node)
        self.evictions += 1

    def _drop_local(self, node: Node) -> None:
        left = self.local_pool.release(node.local)
        assert left == 0, f"local page {node.local} was idle and in use"
        node.local = -1
