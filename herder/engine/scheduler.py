"""Which sequences run in the next step, and how many tokens of each.

The order of service is (priority, turn, arrival): a lower priority number first, then groups by turns (turns.py), then
first come, first served. Every step, within the executor's limits:

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

Where prompts are computed with an arithmetic of their own (Limits.prompts_apart), a chunk ends where the prompt does,
and a sequence's pages with generated tokens go into the cache only when it is displaced, for itself: nobody else has a
use for them (a later prompt that repeats the answer has other entries; reread.py makes those).

Layers of bounded reach may have a pool of their own (Limits.local_pages). A sequence takes local pages as it goes, and
each goes back as soon as the next position to compute no longer sees it; so a long prompt holds its reach and no more.
They count as pages do: the one a sequence cannot do without is taken from the last in order if need be, those that make
a step longer only from what is left over; to be admitted, a sequence needs what its reach will take, after what the
running ones will still take for theirs.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from herder.cache.pages import PagePool, pages_for, reach_pages
from herder.cache.prefix import Node, PrefixCache, content
from herder.core.batch import PAGE_TOKENS, Limits, Want
from herder.engine.sequence import Sequence
from herder.engine.turns import Turns

LEAST_SHARE = 16  # prompt tokens a step: about as many cost no more than the weights read for a single one
LOGIT_VALUES = 1 << 22  # most float32 logits one sequence asks for in a step (16 MB), so that memory stays bounded


@dataclass(frozen=True, slots=True)
class Policy:
    """prefill_seconds, prefill_tokens: how long a step with prompt tokens may keep those waiting that decode, and how
    many prompt tokens it has at most.
    prefix_cache: reuse and keep pages. speculate: most drafted tokens per sequence and step (0: off).
    draft_tokens: most drafted tokens of all sequences together in one step: beyond this, checking guesses costs more
    than the weights read once for all of them.
    reread: compute finished answers as prompts when there is nothing else to do, where that is of use (reread.py).
    """

    prefill_seconds: float = 0.1
    prefill_tokens: int = 256
    prefix_cache: bool = True
    speculate: int = 0
    draft_tokens: int = 16
    reread: bool = True


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
        self._local = limits.local if limits.local_pages else None
        assert not limits.local_pages or self._local is not None, "a local pool, but no layer of bounded reach"
        self._reach = reach_pages(self._local) if self._local is not None else 0
        self.cache = PrefixCache(
            self.pool, PagePool(limits.local_pages) if self._local is not None else None, self._local
        )
        self.running: list[Sequence] = []  # in order of service
        self.waiting: list[tuple[tuple[int, int, int], Sequence]] = []  # a heap
        self.turns = Turns()
        self.preemptions = 0
        self._most = min(limits.batch_chunks, limits.batch_tokens)
        self._logit_rows = max(1, LOGIT_VALUES // limits.vocab)
        self.share = policy.prefill_tokens  # prompt tokens of a step in which something decodes
        self._seconds_per_token = 0.0
        self._full = False  # the head of the line did not fit, and nothing was given back since

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def sequences(self) -> list[Sequence]:
        """Everything under way, running or waiting."""
        return [*self.running, *(sequence for _, sequence in self.waiting)]

    def add(self, sequence: Sequence) -> None:
        start = self.turns.begin(sequence.group, sequence.prompt_tokens)
        sequence.key = (sequence.priority, start, sequence.arrival)
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
        """Publishes the pages that `sequence` has filled since the last call, since only what has been computed is
        shared; then gives back the local pages that it sees no more."""
        stop = sequence.computed
        if sequence.generated_from is not None:
            stop = min(stop, sequence.generated_from)  # the others are of use to nobody else: see _preempt
        self._publish(sequence, stop)
        if self._local is not None:
            self._forget(sequence, self._local.first_visible(sequence.computed) // PAGE_TOKENS)

    def _publish(self, sequence: Sequence, stop: int) -> None:
        """Hands the full pages of the positions before `stop` to the cache."""
        nodes, full = sequence.nodes, stop // PAGE_TOKENS
        if full <= len(nodes) or not self.policy.prefix_cache:
            return
        pages, local_pages = sequence.pages, sequence.local_pages
        for index in range(len(nodes), full):
            held = content(sequence.tokens, index, sequence.images, sequence.generated_from)
            local = local_pages[index] if local_pages else -1
            node = self.cache.publish(nodes[-1] if nodes else None, held, pages[index], local)
            nodes.append(node)
            pages[index] = node.page
            if local >= 0:
                local_pages[index] = node.local

    def measured(self, tokens: int, seconds: float) -> None:
        """How long a step took: sets the pace at which prompts are computed beside sequences that decode.

        A step of fewer than LEAST_SHARE tokens says more about reading weights than about computing tokens.
        """
        if tokens < LEAST_SHARE or seconds <= 0:
            return
        pace, latest = self._seconds_per_token, seconds / tokens
        self._seconds_per_token = latest if not pace else 0.75 * pace + 0.25 * latest
        fitting = int(self.policy.prefill_seconds / self._seconds_per_token)
        self.share = min(self.policy.prefill_tokens, max(LEAST_SHARE, fitting))

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
            decodes = sequence.end - sequence.computed == 1
            if decodes and len(sequence.pages) * PAGE_TOKENS < sequence.end and not self._grow(sequence):
                continue
            if self._local is not None and not self._grow_local(sequence):
                continue
            if decodes:
                items.append(Item(sequence, 1))
            else:
                prompts = prompts or []
                prompts.append(sequence)
        if prompts is None and not self.waiting and not self.policy.speculate:
            return items
        budget = self.limits.batch_tokens - len(items)
        share = min(budget, self.share) if items else budget
        left = share
        for sequence in prompts or ():
            if left and sequence.pages:  # without pages: it was displaced above
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
        if sequence.generated_from is not None and sequence.computed < sequence.generated_from:
            count = min(count, sequence.generated_from - sequence.computed)
        if sequence.want == Want.LOGITS:
            count = min(count, max(sequence.reports_from - sequence.computed, 0) + self._logit_rows)
        if self._local is not None:
            count = min(count, self._extend_local(sequence, sequence.computed + count) - sequence.computed)
        items.append(Item(sequence, count))
        return count

    def _draft(self, items: list[Item], budget: int) -> None:
        for item in items:
            sequence = item.sequence
            if budget <= 0:
                return
            if sequence.speculator is None or item.count != sequence.remaining:
                continue
            if sequence.generated_from is not None and sequence.computed < sequence.generated_from:
                continue  # the chunk is prompt, and drafts are not
            # One of the results is a token of its own, so at most limit - now - 1 drafts can be of use; and a draft
            # is not worth anybody's pages.
            most = min(self.policy.speculate, budget, sequence.tokens_limit - len(sequence.tokens) - 1)
            spare = len(sequence.pages) * PAGE_TOKENS - sequence.end
            while spare < most and self.cache.available > len(self.running):
                self._append_page(sequence)
                spare += PAGE_TOKENS
            most = min(most, spare)
            if self._local is not None:
                most = min(most, self._extend_local(sequence, sequence.end + most) - sequence.end)
            drafts = sequence.speculator.draft(sequence.tokens, most)
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
        self._append_page(sequence)
        return True

    def _append_page(self, sequence: Sequence) -> None:
        sequence.pages.append(self.cache.allocate())
        if self._local is not None:
            sequence.local_pages.append(-1)

    def _grow_local(self, sequence: Sequence) -> bool:
        """The local page of a running sequence's next position, taken as by _grow."""
        if sequence.local_stop * PAGE_TOKENS > sequence.computed:
            return True
        while not self.cache.available_local:
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        self._append_local(sequence)
        return True

    def _extend_local(self, sequence: Sequence, stop: int) -> int:
        """Takes local pages for the positions before `stop`, as far as there are some that nobody else needs in this
        step; returns the end of the positions that have one."""
        while sequence.local_stop * PAGE_TOKENS < stop and self.cache.available_local > len(self.running):
            self._append_local(sequence)
        return min(stop, sequence.local_stop * PAGE_TOKENS)

    def _append_local(self, sequence: Sequence) -> None:
        block = sequence.local_stop
        sequence.local_pages[block] = self.cache.allocate_local()
        sequence.local_stop = block + 1

    def _forget(self, sequence: Sequence, first: int) -> None:
        """Gives back the local pages before block `first`."""
        nodes, local_pages = sequence.nodes, sequence.local_pages
        for block in range(sequence.local_first, first):
            if block < len(nodes):
                self.cache.release_local(nodes[block])
            else:
                self.cache.local_pool.release(local_pages[block])
            local_pages[block] = -1
            self._full = False
        sequence.local_first = max(sequence.local_first, first)

    def _local_need(self, sequence: Sequence) -> int:
        """Local pages that a sequence may still take, beyond those it holds, to compute all of its tokens."""
        assert self._local is not None
        most = min(self._reach, pages_for(sequence.end) - sequence.local_first)
        return max(0, most - (sequence.local_stop - sequence.local_first))

    def _displace(self) -> None:
        while self.waiting and self.running:
            head = self.waiting[0][1]
            if head.priority >= self.running[-1].priority:
                return
            if len(self.running) < self._most:
                fit = self._fit(head)
                if fit is not None:
                    self.cache.release(*fit)
                    return
            self._preempt(self.running[-1])

    def _admit(self) -> Sequence | None:
        """The head of the line with its pages, if there is room for it."""
        if self._full or len(self.running) >= self._most:
            return None
        sequence = self.waiting[0][1]
        fit = self._fit(sequence)
        if fit is None:
            self._full = True
            return None
        heappop(self.waiting)
        self.turns.served(sequence.key[1])
        chain, local_pages = fit
        sequence.nodes = chain
        sequence.computed = len(chain) * PAGE_TOKENS
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = sequence.computed
        sequence.pages.extend([node.page for node in chain])
        if self._local is not None:
            sequence.local_pages.extend(local_pages)
            sequence.local_first = self._local.first_visible(sequence.computed) // PAGE_TOKENS
            sequence.local_stop = len(chain)
        for _ in range(pages_for(sequence.end) - len(chain)):
            self._append_page(sequence)
        if self._local is not None:
            self._append_local(sequence)
        insort(self.running, sequence, key=_key)
        return sequence

    def _fit(self, sequence: Sequence) -> tuple[list[Node], array[int]] | None:
        """The cached chain for a waiting sequence and its local block table, held, if the pages beyond them are
        available; else None."""
        cache = self.cache
        usable = sequence.reports_from // PAGE_TOKENS if self.policy.prefix_cache else 0
        chain = cache.match(sequence.tokens, usable, sequence.images, sequence.generated_from)
        local_pages = cache.hold_local(chain)
        more = len(self.running)
        fits = pages_for(sequence.end) - len(chain) + more <= cache.available
        if fits and self._local is not None:
            first = self._local.first_visible(len(chain) * PAGE_TOKENS) // PAGE_TOKENS
            need = min(self._reach, pages_for(sequence.end) - first) - (len(chain) - first)
            fits = need + sum(map(self._local_need, self.running)) + more <= cache.available_local
        if fits:
            return chain, local_pages
        cache.release(chain, local_pages)
        return None

    def _preempt(self, sequence: Sequence) -> None:
        index = self._running_index(sequence)
        assert index is not None
        del self.running[index]
        if sequence.generated_from is not None:
            self._publish(sequence, sequence.computed)  # for itself, when its turn comes again
        self._release(sequence)
        sequence.computed = 0
        self.preemptions += 1
        heappush(self.waiting, (sequence.key, sequence))

    def _release(self, sequence: Sequence) -> None:
        nodes, pages = sequence.nodes, sequence.pages
        for page in pages[len(nodes) :]:
            self.pool.release(page)
        if self._local is not None:
            for page in sequence.local_pages[max(len(nodes), sequence.local_first) : sequence.local_stop]:
                self.cache.local_pool.release(page)
        self.cache.release(nodes, sequence.local_pages)
        sequence.nodes = []
        del pages[:], sequence.local_pages[:]
        sequence.local_first = sequence.local_stop = 0
        self._full = False


def _key(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.key
