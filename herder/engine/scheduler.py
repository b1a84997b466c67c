"""Which sequences run in the next step, and how many tokens of each.

The order of service is (priority, arrival): a lower priority number first, then first come, first served. Every step,
within the executor's limits:

1. A waiting sequence of strictly better priority may displace running ones of worse priority.
2. Every running sequence that decodes gets its next token. If it needs a page and none is left, the last sequence in
   order gives up its pages: it goes back to the waiting line, at its old place, and recomputes later (what it had
   computed stays in the prefix cache until somebody needs the room). The first in order is never displaced for pages,
   and a sequence that could not fit an empty pool was refused at the door, so it always runs on: no deadlock, and in a
   finite stream of requests of its priority or better, no starvation.
3. What is left of the token budget goes to prompts: those begun before, then new ones. While anything decodes, prompts
   get only as many tokens a step as take about `prefill_seconds` at the pace measured so far, which bounds the time
   between two tokens of a stream. (How a prompt is cut changes no result, so the clock may decide it.)
4. What is still left goes to drafts (speculation).

A sequence is admitted when pages for all of its tokens so far are available, plus one for each sequence that runs, so
that an admission does not force a displacement in the same step. Nobody overtakes the head of the line.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from herder.cache.pages import PagePool, pages_for
from herder.cache.prefix import Node, PrefixCache
from herder.core.batch import PAGE_TOKENS, Limits, Want
from herder.engine.sequence import Sequence

LEAST_SHARE = 16  # prompt tokens a step: about as many cost no more than the weights read for a single one
LOGIT_VALUES = 1 << 22  # most float32 logits one sequence asks for in a step (16 MB), so that memory stays bounded


@dataclass(frozen=True, slots=True)
class Policy:
    """prefill_seconds, prefill_tokens: how long a step with prompt tokens may keep those waiting that decode, and how
    many prompt tokens it has at most.
    prefix_cache: reuse and keep pages. speculate: most drafted tokens per sequence and step (0: off).
    draft_tokens: most drafted tokens of all sequences together in one step: beyond this, checking guesses costs more
    than the weights read once for all of them.
    """

    prefill_seconds: float = 0.1
    prefill_tokens: int = 256
    prefix_cache: bool = True
    speculate: int = 0
    draft_tokens: int = 16


@dataclass(slots=True)
class Item:
    """One sequence's share of a step: `count` tokens, then drafts."""

    sequence: Sequence
    count: int
    drafts: array[int] | None = None


class Scheduler:
    """Owns the waiting line, the running set and the pages. One thread."""

    def __init__(self, limits: Limits, policy: Policy) -> None:
        self.limits = limits
        self.policy = policy
        self.pool = PagePool(limits.pages)
        self.cache = PrefixCache(self.pool)
        self.running: list[Sequence] = []  # in order of service
        self.waiting: list[tuple[tuple[int, int], Sequence]] = []  # a heap
        self.preemptions = 0
        self._most = min(limits.batch_chunks, limits.batch_tokens)
        self._logit_rows = max(1, LOGIT_VALUES // limits.vocab)
        self._share = policy.prefill_tokens  # prompt tokens of a step in which something decodes
        self._seconds_per_token = 0.0
        self._full = False  # the head of the line did not fit, and nothing was given back since

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def sequences(self) -> list[Sequence]:
        """Everything under way, running or waiting."""
        return [*self.running, *(sequence for _, sequence in self.waiting)]

    def add(self, sequence: Sequence) -> None:
        heappush(self.waiting, (sequence.key, sequence))
        if self.waiting[0][1] is sequence:
            self._full = False

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, wherever it is, and takes its pages back."""
        index = self._running_index(sequence)
        if index is not None:
            del self.running[index]
            self._release(sequence)
        else:
            self.waiting.remove((sequence.key, sequence))
            heapify(self.waiting)
            self._full = False

    def computed(self, sequence: Sequence) -> None:
        """Publishes the pages that `sequence` has filled since the last call. Only what has been computed is shared."""
        nodes = sequence.nodes
        full = sequence.computed // PAGE_TOKENS
        if full == len(nodes) or not self.policy.prefix_cache:
            return
        pages = sequence.pages
        for index in range(len(nodes), full):
            ids = sequence.tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
            node = self.cache.publish(nodes[-1] if nodes else None, ids, pages[index])
            nodes.append(node)
            pages[index] = node.page

    def measured(self, tokens: int, seconds: float) -> None:
        """How long a step took: sets the pace at which prompts are computed beside sequences that decode.

        A step of fewer than LEAST_SHARE tokens says more about reading weights than about computing tokens.
        """
        if tokens < LEAST_SHARE or seconds <= 0:
            return
        pace, latest = self._seconds_per_token, seconds / tokens
        self._seconds_per_token = latest if not pace else 0.75 * pace + 0.25 * latest
        fitting = int(self.policy.prefill_seconds / self._seconds_per_token)
        self._share = min(self.policy.prefill_tokens, max(LEAST_SHARE, fitting))

    def plan(self) -> list[Item]:
        """The next step; empty only when there is nothing to do."""
        running = self.running
        if self.waiting and running:
            self._displace()
        items: list[Item] = []
        prompts: list[Sequence] | None = None
        index = 0
        while index < len(running):  # _grow may shorten the list from its end
            sequence = running[index]
            index += 1
            if sequence.end - sequence.computed > 1:
                prompts = prompts or []
                prompts.append(sequence)
            elif len(sequence.pages) * PAGE_TOKENS >= sequence.end or self._grow(sequence):
                items.append(Item(sequence, 1))
        if prompts is None and not self.waiting and not self.policy.speculate:
            return items
        budget = self.limits.batch_tokens - len(items)
        share = min(budget, self._share) if items else budget
        left = share
        for sequence in prompts or ():
            if left and sequence.pages:  # without pages: it was displaced by _grow above
                left -= self._prefill(items, sequence, left)
        while left and self.waiting:
            admitted = self._admit()
            if admitted is None:
                break
            left -= self._prefill(items, admitted, left)
        if self.policy.speculate:
            self._draft(items, min(budget - (share - left), self.policy.draft_tokens))
        assert items or self.idle, "nothing was planned although there is work"
        return items

    def _prefill(self, items: list[Item], sequence: Sequence, budget: int) -> int:
        count = min(sequence.end - sequence.computed, budget)
        if sequence.want == Want.LOGITS:
            count = min(count, max(sequence.reports_from - sequence.computed, 0) + self._logit_rows)
        items.append(Item(sequence, count))
        return count

    def _draft(self, items: list[Item], budget: int) -> None:
        for item in items:
            sequence = item.sequence
            if budget <= 0:
                return
            if sequence.speculator is None or item.count != sequence.remaining:
                continue
            # One of the results is a token of its own, so at most limit - now - 1 drafts can be of use; and a draft
            # is not worth anybody's pages.
            most = min(self.policy.speculate, budget, sequence.tokens_limit - len(sequence.tokens) - 1)
            spare = len(sequence.pages) * PAGE_TOKENS - sequence.end
            while spare < most and self.cache.available > len(self.running):
                sequence.pages.append(self.cache.allocate())
                spare += PAGE_TOKENS
            drafts = sequence.speculator.draft(sequence.tokens, min(most, spare))
            if drafts:
                item.drafts = drafts
                budget -= len(drafts)

    def _running_index(self, sequence: Sequence) -> int | None:
        index = bisect_left(self.running, sequence.key, key=_key)
        found = index < len(self.running) and self.running[index] is sequence
        return index if found else None

    def _grow(self, sequence: Sequence) -> bool:
        """One more page for a running sequence, from the last in order if need be; False if that is itself."""
        while not self.cache.available:
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        sequence.pages.append(self.cache.allocate())
        return True

    def _displace(self) -> None:
        while self.waiting and self.running:
            head = self.waiting[0][1]
            if head.priority >= self.running[-1].priority:
                return
            if len(self.running) < self._most:
                chain = self._fit(head)
                if chain is not None:
                    self.cache.release(chain)
                    return
            self._preempt(self.running[-1])

    def _admit(self) -> Sequence | None:
        """The head of the line with its pages, if there is room for it."""
        if self._full or len(self.running) >= self._most:
            return None
        sequence = self.waiting[0][1]
        chain = self._fit(sequence)
        if chain is None:
            self._full = True
            return None
        heappop(self.waiting)
        sequence.nodes = chain
        sequence.computed = len(chain) * PAGE_TOKENS
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = sequence.computed
        pages = sequence.pages
        pages.extend([node.page for node in chain])
        for _ in range(pages_for(sequence.end) - len(chain)):
            pages.append(self.cache.allocate())
        insort(self.running, sequence, key=_key)
        return sequence

    def _fit(self, sequence: Sequence) -> list[Node] | None:
        """The cached chain for a waiting sequence, held, if the pages beyond it are available; else None."""
        cache = self.cache
        need = pages_for(sequence.end)
        usable = sequence.reports_from // PAGE_TOKENS if self.policy.prefix_cache else 0
        chain = cache.match(sequence.tokens, usable)
        if need - len(chain) + len(self.running) > cache.available:
            cache.release(chain)
            return None
        return chain

    def _preempt(self, sequence: Sequence) -> None:
        index = self._running_index(sequence)
        assert index is not None
        del self.running[index]
        self._release(sequence)
        sequence.computed = 0
        self.preemptions += 1
        heappush(self.waiting, (sequence.key, sequence))

    def _release(self, sequence: Sequence) -> None:
        nodes, pages = sequence.nodes, sequence.pages
        for page in pages[len(nodes) :]:
            self.pool.release(page)
        self.cache.release(nodes)
        sequence.nodes = []
        del pages[:]
        self._full = False


def _key(sequence: Sequence) -> tuple[int, int]:
    return sequence.key
