"""A request under way: its tokens, how many of them are computed, and the pages that hold them.

One counter covers everything: `computed` positions lie in the pages, positions from there to `end` are still to do.
Prefill, decode, a prefix hit, preemption and a rejected draft only move that counter.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from herder.cache.pages import reach_pages
from herder.core.batch import PAGE_TOKENS, Chunk, Limits, Want
from herder.core.errors import ContextOverflow, UnsupportedModel, UsageError
from herder.core.request import Evaluation, Event, Grammar, Image, Request, Sampling, Timings, Usage

if TYPE_CHECKING:
    from herder.cache.prefix import Node
    from herder.engine.speculate import Speculator

Sink = Callable[[Event], None]

_WANT = {"scores": Want.SCORE, "logits": Want.LOGITS, "hidden": Want.HIDDEN}


def capacity(limits: Limits) -> int:
    """The longest sequence, in tokens, that fits both the context and otherwise empty page pools."""
    pages = limits.pages
    if limits.local_pages and limits.local is not None and limits.local_pages < reach_pages(limits.local):
        pages = min(pages, limits.local_pages)  # too few to go on giving back
    return min(limits.context, pages * PAGE_TOKENS)


class Sequence:
    """tokens: prompt, then what was generated. computed: positions whose KV entries lie in `pages`.

    nodes: the cached full pages at the front of the block table; the pages after them belong to this sequence alone.
    local_pages: with a pool of local pages, their block table, as long as `pages`: those of the blocks local_first to
    local_stop - 1 are held, -1 stands for the others. What a node covers is the node's local page.
    end: positions the executor must compute, as far as is known now. reports_from: first position whose results are
    wanted; a prefix hit never reaches it, because a cached position has no results.
    generated_from: where generated tokens begin, if they are computed otherwise than the prompt; else None.
    """

    __slots__ = (
        "arrival",
        "cached_tokens",
        "computed",
        "end",
        "finished",
        "first_token",
        "generated_from",
        "grammar",
        "group",
        "images",
        "key",
        "last_token",
        "local_first",
        "local_pages",
        "local_stop",
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
        self.group = request.group
        self.key = (request.priority, 0, arrival)  # the scheduler says when its turn is
        self.sink = sink
        self.seed = seed
        self.tokens = array("i", prompt)
        self.prompt_tokens = len(prompt)
        self.generated_from = len(prompt) if limits.prompts_apart else None
        self.computed = 0
        self.cached_tokens = -1  # not yet known
        self.images = request.images
        self.pages = array("i")
        self.nodes: list[Node] = []
        self.local_pages = array("i")
        self.local_first = 0
        self.local_stop = 0
        self.finished = False
        self.submitted = now
        self.scheduled = 0.0
        self.first_token = 0.0
        self.last_token = 0.0
        self.sampling: Sampling | None = None
        self.stop_tokens: frozenset[int] = frozenset()
        self.speculator: Speculator | None = None
        self.grammar: Grammar | None = None
        self.end = len(prompt)
        if isinstance(request, Request):
            self.want = Want.TOKEN
            self.sampling = request.sampling
            self.stop_tokens = request.stop_tokens
            if request.grammar is not None:
                self.grammar = request.grammar
                self.stop_tokens |= request.grammar.end_tokens
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

    def masks(self, drafts: array[int] | None) -> tuple[bytes, array[int] | None]:
        """What the grammar allows at the next output and after each draft, and the drafts up to the first that it does
        not allow or that ends the output. Only for a sequence with a grammar whose next chunk has outputs.

        Raises what the grammar raises when it has become too complex.
        """
        grammar = self.grammar
        assert grammar is not None
        rows = [grammar.mask()]
        accepted = 0
        for draft in drafts or ():
            if draft in self.stop_tokens or not grammar.accept(draft):
                break
            accepted += 1
            if grammar.complete:
                grammar.rollback(1)
                accepted -= 1
                break
            rows.append(grammar.mask())
        if accepted:
            grammar.rollback(accepted)
        return b"".join(rows), drafts[:accepted] if drafts and accepted else None

    def chunk(self, count: int, drafts: array[int] | None = None, mask: bytes | None = None) -> Chunk:
        """The next `count` tokens to compute, then `drafts`: guesses whose results tell whether they were right."""
        start = self.computed
        stop = start + count
        outputs = stop - max(start, self.reports_from)
        local_pages, images = self.local_pages, self.images
        if images and images[-1].positions[0] >= stop:
            images = tuple(image for image in images if image.positions[0] < stop)
        tokens = self.tokens[start:stop]
        prompt = start < self.prompt_tokens
        apart = self.generated_from
        assert apart is None or not prompt or (stop <= apart and not drafts), "a chunk of prompt and generated tokens"
        if outputs <= 0:
            return Chunk(self.arrival, tokens, start, self.pages, local_pages=local_pages, images=images, prompt=prompt)
        sampling = self.sampling
        if sampling is None:
            targets = self.tokens[stop - outputs + 1 : stop + 1] if self.want == Want.SCORE else ()
            return Chunk(
                self.arrival,
                tokens,
                start,
                self.pages,
                outputs,
                self.want,
                targets=targets,
                local_pages=local_pages,
                images=images,
                prompt=prompt,
            )
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
            mask,
            local_pages=local_pages,
            images=images,
            prompt=prompt,
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
    if min(prompt) < 0 or max(prompt) >= limits.prompt_ids:
        wrong = next(t for t in prompt if not 0 <= t < limits.prompt_ids)
        raise UsageError(f"token id {wrong} is outside this model's vocabulary (0 to {limits.prompt_ids - 1})")
    if isinstance(request, Evaluation) and request.report == "scores":
        for position in range(max(request.first, 1), len(prompt)):
            if prompt[position] >= limits.vocab:
                raise UsageError(
                    f"token {position} is {prompt[position]}, which is read but never written: it has no score"
                )
    check_images(request.images, prompt, limits)
    limit = capacity(limits)
    if need > limit:
        asked = "" if not generate else f" and max_tokens is {generate}: {need} in all"
        pictures = sum(len(image.positions) for image in request.images)
        shown = f" ({pictures} of them for {len(request.images)} images)" if pictures else ""
        held = f"the context holds {limit}"
        if limit < limits.context:
            store = f"{limits.pages} pages"
            if limit < limits.pages * PAGE_TOKENS:
                store = f"{limits.local_pages} pages for the layers of bounded reach"
            held = f"the KV cache has {store}, which hold {limit} (the context is {limits.context})"
        way = "shorten the prompt or ask for fewer tokens" if generate else "shorten the prompt"
        if pictures:
            way = "give fewer or smaller images, " + way
        raise ContextOverflow(
            f"the prompt has {len(prompt)} tokens{shown}{asked}, but {held}: {way}, or load the model with a larger "
            "context",
            prompt_tokens=len(prompt),
            limit=limit,
        )


def check_images(images: tuple[Image, ...], prompt: tuple[int, ...], limits: Limits) -> None:
    """Refuses images that nobody can show to the model, or that lie outside the prompt or in each other's way."""
    if not images:
        return
    if not limits.images:
        raise UnsupportedModel(
            "the prompt has an image, which only a vision model takes, and only with runtime='torch': load one with it"
        )
    last = -1
    for number, image in enumerate(images):
        if not image.positions:
            raise UsageError(f"image {number} has no position in the prompt")
        for position in image.positions:
            if position <= last:
                raise UsageError(f"image {number} is at position {position}, not behind position {last} before it")
            last = position
    if last >= len(prompt):
        raise UsageError(f"image {len(images) - 1} is at position {last}: the prompt has {len(prompt)} tokens")
