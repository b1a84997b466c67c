"""The prefix cache: pages whose contents are known by the tokens they were computed from, shared by all sequences.

The KV entries of a page depend on every token up to the page's end, so a page is named by the chain of token ids that
leads to it: its own PAGE_TOKENS ids and the node of the page before. A node's key is (number of the parent node, the
ids as bytes), looked up in one dictionary; equality of keys compares the ids themselves, so two prefixes with the same
hash are never confused, and node numbers are never used twice.

Only full pages are shared. A partially filled page is still being written by its one owner, and a reader would see
entries appear behind its back: it becomes sharable the moment its last position is computed.

A node holds one reference to its page, each sequence that uses it holds another. Nodes used by no sequence are idle;
they stay until pages run short and are then evicted least recently used first. A sequence holds the whole chain up to
its deepest node and lets go of it deepest first, so an idle parent is always younger than its idle children, and
eviction never cuts a chain in the middle.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from herder.cache.pages import PagePool
from herder.core.batch import PAGE_TOKENS


class Node:
    """One full page in the cache. `number` is unique for the life of the cache."""

    __slots__ = ("children", "key", "number", "page", "parent")

    def __init__(self, number: int, key: tuple[int, bytes], page: int, parent: Node | None) -> None:
        self.number = number
        self.key = key
        self.page = page
        self.parent = parent
        self.children = 0


class PrefixCache:
    """Hands out pages of `pool`, evicting idle cached pages when none is free."""

    __slots__ = ("_count", "_idle", "_nodes", "evictions", "pool")

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.evictions = 0
        self._count = 0
        self._nodes: dict[tuple[int, bytes], Node] = {}
        self._idle: OrderedDict[int, Node] = OrderedDict()  # by node number, least recently used first

    @property
    def available(self) -> int:
        """Pages that allocate() can still hand out: free ones and idle cached ones."""
        return self.pool.free + len(self._idle)

    @property
    def cached(self) -> int:
        """Pages the cache holds, idle or in use."""
        return len(self._nodes)

    def allocate(self) -> int:
        """A page nobody else refers to. The caller has checked `available`."""
        if not self.pool.free:
            self._evict()
        return self.pool.allocate()

    def match(self, tokens: array[int], pages: int) -> list[Node]:
        """The longest cached chain over the first `pages` pages of tokens, with a reference to each for the caller."""
        found: list[Node] = []
        nodes, idle, parent = self._nodes, self._idle, 0
        for index in range(pages):
            node = nodes.get((parent, tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS].tobytes()))
            if node is None:
                break
            self.pool.retain(node.page)
            idle.pop(node.number, None)
            found.append(node)
            parent = node.number
        return found

    def publish(self, parent: Node | None, tokens: array[int], page: int) -> Node:
        """Makes a full page sharable; the caller's reference to `page` becomes one to the returned node's page.

        tokens: the page's PAGE_TOKENS ids. parent: the node of the page before, None for the first page; the caller
        holds it. When the same prefix is in the cache already, `page` is released and the cached page takes its place:
        their contents are equal, since a token's KV entries depend on nothing but the tokens before it.
        """
        assert len(tokens) == PAGE_TOKENS, "only a full page can be shared"
        key = (0 if parent is None else parent.number, tokens.tobytes())
        node = self._nodes.get(key)
        if node is not None:
            assert node.page != page, f"page {page} was published twice"
            self.pool.release(page)
            self.pool.retain(node.page)
            self._idle.pop(node.number, None)
            return node
        self._count += 1
        node = self._nodes[key] = Node(self._count, key, page, parent)
        if parent is not None:
            parent.children += 1
        self.pool.retain(page)
        return node

    def release(self, chain: Sequence[Node]) -> None:
        """Gives up the caller's references to a chain (root first)."""
        for node in reversed(chain):
            if self.pool.release(node.page) == 1:
                self._idle[node.number] = node

    def clear(self) -> None:
        """Evicts everything that no sequence uses."""
        while self._idle:
            self._evict()

    def _evict(self) -> None:
        _, node = self._idle.popitem(last=False)
        assert node.children == 0, f"evicting node {node.number} would cut off its children"
        if node.parent is not None:
            node.parent.children -= 1
        del self._nodes[node.key]
        left = self.pool.release(node.page)
        assert left == 0, f"page {node.page} was idle and in use"
        self.evictions += 1
