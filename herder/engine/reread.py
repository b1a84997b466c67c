"""Reading answers again: while nothing else is to be done, the pages of finished answers are computed as prompts.

The next turn of a conversation repeats the answer in its prompt. Where prompts have an arithmetic of their own
(Limits.prompts_apart), it cannot use the pages that were written while the answer was generated, and would have to
compute the answer's tokens before its own; so they are computed beforehand, when nobody waits.

Every step is complete in itself: it takes pages that nobody holds, computes the next few of an answer, hands them to
the cache and lets go. So a request that comes finds the engine as it would be without us, at most one step later.

The newest answer is read first, so that the pages it takes are those used longest ago. As many are remembered as fit
into the cache together: reading one never displaces a newer one. An answer whose prompt has left the cache is not read:
memory is short, and its conversation would displace another.
"""

from __future__ import annotations

from array import array
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from herder.cache.prefix import Node, content
from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Executor
from herder.core.request import Image
from herder.engine.sequence import Sequence

if TYPE_CHECKING:
    from herder.engine.scheduler import Scheduler

MOST = 64  # answers that are remembered, if so many fit


class Answer(NamedTuple):
    """tokens: of the prompt and of the answer."""

    tokens: array[int]
    prompt_tokens: int
    images: tuple[Image, ...]


class Rereader:
    """Remembers the latest finished answers. tokens: how many were computed again so far."""

    def __init__(self, executor: Executor, scheduler: Scheduler) -> None:
        self.tokens = 0
        self._executor = executor
        self._scheduler = scheduler
        limits, policy = scheduler.limits, scheduler.policy
        # A step computes whole pages, so that it has nothing to leave behind.
        whole = limits.batch_tokens >= PAGE_TOKENS
        self._useful = policy.reread and policy.prefix_cache and limits.prompts_apart and whole
        self._answers: deque[Answer] = deque(maxlen=MOST)

    def __bool__(self) -> bool:
        """Whether there may be something to read."""
        return bool(self._answers)

    def note(self, sequence: Sequence) -> None:
        """Remembers a sequence that has ended by itself, if there is a full page with a part of its answer."""
        full = len(sequence.tokens) // PAGE_TOKENS * PAGE_TOKENS
        if self._useful and sequence.sampling is not None and full > sequence.prompt_tokens:
            answers = self._answers
            answers.append(Answer(sequence.tokens[:full], sequence.prompt_tokens, sequence.images))
            while sum(len(answer.tokens) for answer in answers) > self._scheduler.pool.size * PAGE_TOKENS:
                answers.popleft()

    def step(self) -> bool:
        """Computes the next pages of the newest answer, about as many tokens as prompts get beside sequences that
        decode; False when there is nothing left to read. Only while the scheduler has nothing to run."""
        while self._answers:
            if self._read(self._answers[-1]):
                return True
            self._answers.pop()
        return False

    def _read(self, answer: Answer) -> bool:
        """Computes a few pages; False when the answer is read, or is not worth it any more."""
        scheduler = self._scheduler
        cache, limits = scheduler.cache, scheduler.limits
        whole = len(answer.tokens) // PAGE_TOKENS
        nodes = cache.match(answer.tokens, whole, answer.images)
        local_pages = cache.hold_local(nodes) if limits.local_pages else array("i")
        count = 0
        if len(nodes) >= answer.prompt_tokens // PAGE_TOKENS:
            share = max(1, min(scheduler.share, limits.batch_tokens) // PAGE_TOKENS)
            count = min(share, whole - len(nodes), cache.available)
            if limits.local_pages:
                count = min(count, cache.available_local)
        if count:
            self._compute(answer, count, nodes, local_pages)
        cache.release(nodes, local_pages)
        return count > 0

    def _compute(self, answer: Answer, count: int, nodes: list[Node], local_pages: array[int]) -> None:
        """Makes `count` pages behind a held chain a part of it; forgets the answer when that fails."""
        scheduler = self._scheduler
        cache = scheduler.cache
        first = len(nodes)
        start, stop = first * PAGE_TOKENS, (first + count) * PAGE_TOKENS
        pages = array("i", [node.page for node in nodes])
        for _ in range(count):
            pages.append(cache.allocate())
            if scheduler.limits.local_pages:
                local_pages.append(cache.allocate_local())
        images = tuple(image for image in answer.images if image.positions[0] < stop)
        chunk = Chunk(0, answer.tokens[start:stop], start, pages, local_pages=local_pages, images=images, prompt=True)
        began = monotonic()
        try:
            (output,) = self._executor.result(self._executor.launch(Batch((chunk,))))
            failed = output.error is not None
        except Exception:  # whatever it is, it is nobody's request
            failed = True
        if failed:
            for page in pages[first:]:
                cache.pool.release(page)
            for page in local_pages[first:]:
                cache.local_pool.release(page)
            self._answers.pop()
            return
        scheduler.measured(stop - start, monotonic() - began)
        self.tokens += stop - start
        for index in range(first, first + count):
            local = local_pages[index] if local_pages else -1
            node = cache.publish(
                nodes[-1] if nodes else None, content(answer.tokens, index, answer.images), pages[index], local
            )
            nodes.append(node)
            if local >= 0:
                local_pages[index] = node.local
