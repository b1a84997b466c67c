"""A request under way: its tokens, how many of them are computed, and the pages that hold them.

One counter covers everything: `computed` positions lie in the pages, positions from there to `end` are still to do.
Prefill, decode, a prefix hit, preemption and a rejected draft only move that counter.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from herder.core.batch import PAGE_TOKENS, Chunk, Limits, Want
from herder.core.errors import ContextOverflow, UsageError
from herder.core.request import Evaluation, Event, Request, Sampling, Timings, Usage

if TYPE_CHECKING:
    from herder.cache.prefix import Node
    from herder.engine.speculate import Speculator

Sink = Callable[[Event], None]

_WANT = {"scores": Want.SCORE, "logits": Want.LOGITS, "hidden": Want.HIDDEN}


def capacity(limits: Limits) -> int:
    """The longest sequence, in tokens, that fits both the context and an otherwise empty page pool."""
    return min(limits.context, limits.pages * PAGE_TOKENS)


class Sequence:
    """tokens: prompt, then what was generated. computed: positions whose KV entries lie in `pages`.

    nodes: the cached full pages at the front of the block table; the pages after them belong to this sequence alone.
    end: positions the executor must compute, as far as is known now. reports_from: first position whose results are
    wanted; a prefix hit never reaches it, because a cached position has no results.
    """

    __slots__ = (
        "arrival",
        "cached_tokens",
        "computed",
        "end",
        "finished",
        "first_token",
        "key",
        "last_token",
        "nodes",
        "pages",
        "priority",
        "prompt_tokens",
        "reports_from",
        "sampling",
        "scheduled",
        "seed",
        "sink",
        "speculator",
        "stop_tokens",
        "submitted",
        "tokens",
        "tokens_limit",
        "want",
    )

    def __init__(
        self, request: Request | Evaluation, arrival: int, sink: Sink, limits: Limits, seed: int, now: float
    ) -> None:
        prompt = request.prompt if isinstance(request, Request) else request.tokens
        self.arrival = arrival
        self.priority = request.priority
        self.key = (request.priority, arrival)
        self.sink = sink
        self.seed = seed
        self.tokens = array("i", prompt)
        self.prompt_tokens = len(prompt)
        self.computed = 0
        self.cached_tokens = -1  # not yet known
        self.pages = array("i")
        self.nodes: list[Node] = []
        self.finished = False
        self.submitted = now
        self.scheduled = 0.0
        self.first_token = 0.0
        self.last_token = 0.0
        self.sampling: Sampling | None = None
        self.stop_tokens: frozenset[int] = frozenset()
        self.speculator: Speculator | None = None
        self.end = len(prompt)
        if isinstance(request, Request):
            self.want = Want.TOKEN
            self.sampling = request.sampling
            self.stop_tokens = request.stop_tokens
            self.reports_from = self.end - 1
            room = capacity(limits)
            self.tokens_limit = room if request.max_tokens is None else min(room, self.end + request.max_tokens)
        else:
            self.want = _WANT[request.report]
            self.tokens_limit = self.end
            self.reports_from = request.first
            if self.want == Want.SCORE:
                # Token i is scored at position i - 1, and nothing is asked of the last position.
                self.end -= 1
                self.reports_from = max(request.first, 1) - 1

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        return self.end - self.computed

    def append(self, token: int) -> None:
        """A newly generated token: one more position to compute, and its result is wanted."""
        self.tokens.append(token)
        self.reports_from = self.end
        self.end += 1

    def chunk(self, count: int, drafts: array[int] | None = None) -> Chunk:
        """The next `count` tokens to compute, then `drafts`: guesses whose results tell whether they were right."""
        start = self.computed
        stop = start + count
        outputs = stop - max(start, self.reports_from)
        if outputs <= 0:
            return Chunk(self.arrival, self.tokens[start:stop], start, self.pages)
        tokens = self.tokens[start:stop]
        sampling = self.sampling
        if sampling is None:
            targets = self.tokens[stop - outputs + 1 : stop + 1] if self.want == Want.SCORE else ()
            return Chunk(self.arrival, tokens, start, self.pages, outputs, self.want, targets=targets)
        if drafts:
            tokens += drafts
            outputs += len(drafts)
        return Chunk(
            self.arrival,
            tokens,
            start,
            self.pages,
            outputs,
            Want.TOKEN,
            sampling,
            self.seed,
            len(self.tokens) - self.prompt_tokens,
            self.tokens if sampling.penalizes else (),
            self.prompt_tokens,
        )

    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.generated, max(self.cached_tokens, 0))

    def timings(self, now: float) -> Timings:
        scheduled = self.scheduled or now
        first = self.first_token or now
        return Timings(scheduled - self.submitted, first - scheduled, max(self.last_token, first) - first)


def check(request: Request | Evaluation, limits: Limits) -> None:
    """Refuses what could never run. Raises UsageError, or ContextOverflow with the numbers."""
    if isinstance(request, Request):
        prompt, generate = request.prompt, request.max_tokens
        if generate is not None and generate < 1:
            raise UsageError(f"max_tokens is {generate}: must be 1 or more (or None, until the context is full)")
        for token, _ in request.sampling.logit_bias:
            if token >= limits.vocab:
                raise UsageError(f"logit_bias names token {token}: this model's vocabulary ends at {limits.vocab - 1}")
        need = len(prompt) + (1 if generate is None else generate)
    else:
        prompt, generate = request.tokens, 0
        need = len(prompt)
        if request.report not in _WANT:
            raise UsageError(f"report is {request.report!r}: must be one of {', '.join(_WANT)}")
        least = 2 if request.report == "scores" else 1
        if len(prompt) < least:
            raise UsageError(f"{len(prompt)} tokens were given for {request.report}: at least {least} are needed")
        last = len(prompt) - 1
        if not 0 <= request.first <= last:
            raise UsageError(f"first is {request.first}: must be between 0 and {last}, the last of the given tokens")
    if not prompt:
        raise UsageError("the prompt is empty: give at least one token")
    if min(prompt) < 0 or max(prompt) >= limits.vocab:
        wrong = next(t for t in prompt if not 0 <= t < limits.vocab)
        raise UsageError(f"token id {wrong} is outside this model's vocabulary (0 to {limits.vocab - 1})")
    limit = capacity(limits)
    if need > limit:
        asked = "" if not generate else f" and max_tokens is {generate}: {need} in all"
        held = f"the context holds {limit}"
        if limit < limits.context:
            held = f"the KV cache has {limits.pages} pages, which hold {limit} (the context is {limits.context})"
        way = "shorten the prompt or ask for fewer tokens" if generate else "shorten the prompt"
        raise ContextOverflow(
            f"the prompt has {len(prompt)} tokens{asked}, but {held}: {way}, or load the model with a larger context",
            prompt_tokens=len(prompt),
            limit=limit,
        )
