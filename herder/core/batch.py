"""The seam between policy and mechanism: the engine makes a Batch of Chunks, an Executor runs it.

There are no phases. Prefill, decode, verification of drafted tokens, scoring and embedding are one call: "these new
tokens for these sequences; results at the last `outputs` positions". The engine owns page *numbers*, the runtime owns
page *storage*.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from herder.core.config import LayerPlan
from herder.core.request import Image, Sampling, TokenLogprob

PAGE_TOKENS = 32  # HD_PAGE_TOKENS of the native core


class Want(enum.IntFlag):
    """Which results a chunk asks for at its output positions (values of hd_want)."""

    NOTHING = 0
    TOKEN = 1
    LOGITS = 2
    SCORE = 4
    HIDDEN = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence.

    tokens, pages and history are array('i') (or any int sequence): contiguous, so a runtime passes them on as they are.
    seq: the engine's number of the sequence, only echoed back.
    start: position of tokens[0]; every position before it is already in the KV pages.
    prompt: the tokens are the request's prompt; else they were generated, or are drafts. Never some of each where
    limits.prompts_apart.
    pages: block table: page i holds positions i * PAGE_TOKENS .. (i + 1) * PAGE_TOKENS - 1.
    outputs: results are wanted at the last `outputs` positions (0..len(tokens)).
    step: index, in the request's output, of the first output position (the sampler's counter).
    history: prompt and output tokens before the first output position, inclusive of it; only when sampling.penalizes.
    A later output position sees, besides, the chunk's tokens between the first one and itself, as output.
    prompt_tokens: how many of history are prompt.
    mask: None, or for each output position ceil(vocab / 32) little-endian uint32 words, bit set = allowed.
    targets: with Want.SCORE, the token to score at each output position.
    local_pages: where limits.local_pages is not 0, the block table of the layers of bounded reach (LayerPlan.local), a
    store of its own: as long as `pages`, entry i for the same positions, -1 where no position of it can be seen again
    and where none is computed yet.
    images: all images of the sequence that begin before start + len(tokens), in order of position.
    """

    seq: int
    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    outputs: int = 0
    want: Want = Want.NOTHING
    sampling: Sampling | None = None
    seed: int = 0
    step: int = 0
    history: Sequence[int] = ()
    prompt_tokens: int = 0
    mask: bytes | None = None
    targets: Sequence[int] = ()
    local_pages: Sequence[int] = ()
    images: tuple[Image, ...] = ()
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    chunks: tuple[Chunk, ...]

    @property
    def tokens(self) -> int:
        return sum(len(c.tokens) for c in self.chunks)


@dataclass(frozen=True, slots=True)
class Output:
    """Results of one chunk, in the order of its output positions. Fields not wanted are empty.

    error: what made this chunk alone fail (NaN in its own numbers, no token left to choose); the others are whole.
    """

    seq: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # when sampling.logprobs is not None
    logits: Any = None  # float32 buffer of outputs * vocab values (array('f') or ndarray)
    scores: Sequence[float] = ()
    hidden: Any = None  # float32 buffer of outputs * dim values
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What an executor can hold."""

    pages: int  # KV pages, shared by all sequences
    context: int  # longest sequence, tokens
    batch_tokens: int  # most new tokens in one batch
    batch_chunks: int  # most chunks in one batch
    vocab: int
    local_pages: int = 0  # pages of the layers of bounded reach; 0: they share `pages` with the others
    local: LayerPlan | None = None  # with local_pages: whose first_visible() says which of them are still needed
    images: bool = False  # whether chunks may carry images
    rows: int = 0  # of the embedding, where it has more than vocab: for ids that are read but never written
    prompts_apart: bool = False  # prompt tokens are computed with another arithmetic than generated ones, so that the
    # results of a token, and its KV entries, depend on which of them it and those before it are

    @property
    def prompt_ids(self) -> int:
        """How many ids a prompt may hold, from 0 on."""
        return self.rows or self.vocab


Ticket = Any  # a batch under way; what it is, only the executor that launched it knows


class Executor(Protocol):
    """Runs batches one after another. launch hands a batch over and returns at once; result waits for it.

    A failed batch raises from result (herder.core.errors); the executor stays usable for the next one. An executor may
    also have interrupt(): from any thread, it makes the batch under way fail soon.
    """

    @property
    def limits(self) -> Limits: ...

    def launch(self, batch: Batch) -> Ticket: ...

    def result(self, ticket: Ticket) -> list[Output]: ...

    def close(self) -> None: ...


def int_array(values: Sequence[int]) -> array[int]:
    """values as a contiguous array of C ints, without a copy when it already is one."""
    return values if isinstance(values, array) and values.typecode == "i" else array("i", values)
