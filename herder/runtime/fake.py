"""A deterministic executor without a model, for tests of everything above the seam.

It keeps a real paged store: 8 bytes for every position of every page. The entry of a position is a checksum over all
entries before it, as read back through the block table, and its token; so is every result. A wrong block table, a stale
or shared page written by two sequences, a wrong start or a wrong length therefore shows up as wrong tokens, and a
correct engine gives the tokens of reference(), which knows no pages.

Where the limits say that prompts are computed apart, the entry of a token says whether it was generated.

A model may also have layers of bounded reach: a second entry for each position, kept in the local pages where the
limits have some and beside the first one where not, of which a position sees those that its reach allows. Images count
from their first position on, like the entries before it.
"""

from __future__ import annotations

import math
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Limits, Output, Want
from herder.core.config import LayerPlan
from herder.core.request import Image, Sampling, TokenLogprob

_ENTRY = struct.Struct("<Ii")  # a function of the context's checksum, token
_PAGE_BYTES = PAGE_TOKENS * _ENTRY.size


class FakeModel:
    """A model is a function from the entries up to a position to logits. local: the layers of bounded reach, if any.
    prompts_apart: as in Limits."""

    def __init__(
        self, vocab: int, dim: int = 4, local: LayerPlan | None = None, *, prompts_apart: bool = False
    ) -> None:
        self.vocab = vocab
        self.dim = dim
        self.local = local
        self.prompts_apart = prompts_apart

    def entry(self, context: int, token: int, generated: bool) -> bytes:
        """What the store keeps for a token, given the state before it.

        The product matters: a CRC followed by itself has a constant CRC, which would forget the context.
        """
        return _ENTRY.pack((context + (generated and self.prompts_apart)) * 0x9E3779B1 & 0xFFFFFFFF, token)

    def local_entry(self, context: int, token: int, generated: bool) -> bytes:
        """The same for the layers of bounded reach."""
        return _ENTRY.pack((context + (generated and self.prompts_apart)) * 0x85EBCA77 & 0xFFFFFFFF, token)

    def first_visible(self, position: int) -> int:
        return position if self.local is None else self.local.first_visible(position)

    @staticmethod
    def shown(state: int, images: Iterable[Image], position: int) -> int:
        """The state after the images that begin at `position` or before, each with the share of it that was shown."""
        for image in images:
            if image.positions[0] <= position:
                state = crc32(image.key, state + bisect_right(image.positions, position) & 0xFFFFFFFF)
        return state

    def greedy(self, state: int) -> int:
        return state % self.vocab

    def sample(
        self, state: int, sampling: Sampling, seed: int, step: int, history: Sequence[int], prompt: int, mask: bytes
    ) -> int:
        """The token drawn in `state`: the greedy one at temperature 0, else one that depends on seed and step."""
        token = self.greedy(state)
        if sampling.temperature:
            token = crc32(struct.pack("<IQq", state, seed, step)) % self.vocab
        if sampling.penalizes:
            token = (token + crc32(array("i", history).tobytes(), prompt)) % self.vocab
        for biased, bias in sampling.logit_bias:
            if bias >= 100:
                token = biased
        if mask and not mask[token // 8] >> (token % 8) & 1:
            allowed = [token for token in range(self.vocab) if mask[token // 8] >> (token % 8) & 1]
            assert allowed, "a mask that allows no token"
            token = allowed[crc32(struct.pack("<II", state, step)) % len(allowed)]  # any of them, not always the first
        return token

    def logits(self, state: int) -> list[float]:
        """Noise in [0, 1), and 2 for the greedy token."""
        values = [crc32(struct.pack("<II", state, token)) / 2**32 for token in range(self.vocab)]
        values[self.greedy(state)] = 2.0
        return values

    def logprobs(self, state: int) -> list[float]:
        logits = self.logits(state)
        total = math.log(sum(math.exp(value) for value in logits))
        return [value - total for value in logits]

    def hidden(self, state: int) -> list[float]:
        return [crc32(struct.pack("<IiI", state, axis, 1)) / 2**31 - 1 for axis in range(self.dim)]


class Text:
    """A growing text and its states, from the definition: no pages."""

    def __init__(self, model: FakeModel, images: Sequence[Image] = ()) -> None:
        self._model = model
        self._images = images
        self._length = 0
        self._checksum = 0
        self._local = b""

    def append(self, token: int, generated: bool = False) -> int:
        """The state at the token's position."""
        model, position = self._model, self._length
        self._length += 1
        seen = model.first_visible(position) * _ENTRY.size
        before = model.shown(crc32(self._local[seen:], self._checksum), self._images, position)
        self._checksum = crc32(model.entry(before, token, generated), self._checksum)
        if model.local is not None:
            self._local += model.local_entry(before, token, generated)
        return model.shown(crc32(self._local[seen:], self._checksum), self._images, position)


def reference(
    model: FakeModel,
    prompt: Sequence[int],
    tokens: int,
    sampling: Sampling,
    seed: int,
    stop: Iterable[int] = (),
    images: Sequence[Image] = (),
) -> list[int]:
    """The tokens one request gets when it is alone: no pages, no batch, no cache; everything computed afresh."""
    text, state = Text(model, images), 0
    history = list(prompt)
    for token in prompt:
        state = text.append(token)
    generated: list[int] = []
    while len(generated) < tokens:
        token = model.sample(state, sampling, seed, len(generated), history, len(prompt), b"")
        if token in stop:
            break
        history.append(token)
        generated.append(token)
        state = text.append(token, generated=True)
    return generated


@dataclass(slots=True)
class _Ticket:
    batch: Batch
    number: int


class FakeExecutor:
    """local: the layers of bounded reach, if the model is to have some and limits.local does not say. fail: called with
    the number of the batch (from 0) and the batch; an exception it returns is raised by result() after half of the
    batch's entries have been written, as a real failure would leave them."""

    def __init__(
        self,
        limits: Limits,
        *,
        dim: int = 4,
        local: LayerPlan | None = None,
        fail: Callable[[int, Batch], Exception | None] | None = None,
    ) -> None:
        self._limits = limits
        self.model = FakeModel(limits.vocab, dim, limits.local or local, prompts_apart=limits.prompts_apart)
        self.batches = 0
        self.closed = False
        self._fail = fail
        self._store = bytearray(b"\xa5" * (limits.pages * _PAGE_BYTES))
        self._local_store = bytearray(b"\x5a" * ((limits.local_pages or limits.pages) * _PAGE_BYTES))

    @property
    def limits(self) -> Limits:
        return self._limits

    def launch(self, batch: Batch) -> _Ticket:
        assert not self.closed, "launch on a closed executor"
        limits = self._limits
        assert 0 < len(batch.chunks) <= limits.batch_chunks, f"{len(batch.chunks)} chunks in a batch"
        assert batch.tokens <= limits.batch_tokens, f"{batch.tokens} tokens in a batch"
        tables = [page for chunk in batch.chunks for page in set(chunk.pages)]
        local_tables = [page for chunk in batch.chunks for page in set(chunk.local_pages)]
        for chunk in batch.chunks:
            for page in chunk.pages[chunk.start // PAGE_TOKENS :]:
                assert tables.count(page) == 1, f"page {page} is written by one sequence and held by another"
            end = chunk.start + len(chunk.tokens)
            assert chunk.tokens and end <= limits.context, f"chunk ends at {end} of {limits.context}"
            assert len(chunk.pages) * PAGE_TOKENS >= end, f"{len(chunk.pages)} pages for {end} positions"
            assert len(set(chunk.pages)) == len(chunk.pages), "a page twice in one block table"
            assert all(0 <= page < limits.pages for page in chunk.pages), "a page that does not exist"
            assert all(0 <= token < limits.vocab for token in chunk.tokens), "a token outside the vocabulary"
            if limits.local_pages:
                self._check_local(chunk, local_tables)
            else:
                assert not chunk.local_pages, "local pages where there is no pool of them"
            assert limits.images or not chunk.images, "images for a model that takes none"
            assert all(image.positions[0] < end for image in chunk.images), "an image that begins behind the chunk"
            assert chunk.outputs <= len(chunk.tokens)
            if chunk.want & Want.SCORE:
                assert len(chunk.targets) == chunk.outputs
            if chunk.want & Want.TOKEN:
                assert chunk.sampling is not None
            if chunk.mask is not None:
                assert len(chunk.mask) == chunk.outputs * (-(-limits.vocab // 32) * 4), (
                    f"{len(chunk.mask)} bytes of mask"
                )
        number = self.batches
        self.batches += 1
        return _Ticket(batch, number)

    def result(self, ticket: _Ticket) -> list[Output]:
        error = self._fail(ticket.number, ticket.batch) if self._fail is not None else None
        if error is not None:
            for chunk in ticket.batch.chunks[::2]:
                self._write(chunk)
            raise error
        for chunk in ticket.batch.chunks:
            self._write(chunk)
        return [self._output(chunk, self._read(chunk)) for chunk in ticket.batch.chunks]

    def close(self) -> None:
        self.closed = True

    def _check_local(self, chunk: Chunk, tables: list[int]) -> None:
        """The chunk must have the local pages that its positions see, and no longer those that none of them sees."""
        end = chunk.start + len(chunk.tokens)
        assert len(chunk.local_pages) == len(chunk.pages), "the block tables differ in length"
        first, last = self.model.first_visible(chunk.start) // PAGE_TOKENS, (end - 1) // PAGE_TOKENS
        held = [page for page in chunk.local_pages if page >= 0]
        assert all(page < 0 for page in chunk.local_pages[:first]), "a local page that no position can see"
        assert all(page >= 0 for page in chunk.local_pages[first : last + 1]), "a local page is missing"
        assert len(set(held)) == len(held) and all(page < self._limits.local_pages for page in held)
        for page in chunk.local_pages[chunk.start // PAGE_TOKENS : last + 1]:
            assert tables.count(page) == 1, f"local page {page} is written by one sequence and held by another"

    def _write(self, chunk: Chunk) -> None:
        """Stores the entries of the chunk's tokens."""
        model, size, generated = self.model, _ENTRY.size, not chunk.prompt
        checksum = self._checksum(chunk, chunk.start)
        for position, token in enumerate(chunk.tokens, chunk.start):
            before = model.shown(self._local_checksum(chunk, position, position, checksum), chunk.images, position)
            block, offset = position // PAGE_TOKENS, position % PAGE_TOKENS * size
            entry = model.entry(before, token, generated)
            at = chunk.pages[block] * _PAGE_BYTES + offset
            self._store[at : at + size] = entry
            checksum = crc32(entry, checksum)
            if model.local is not None:
                at = (chunk.local_pages or chunk.pages)[block] * _PAGE_BYTES + offset
                self._local_store[at : at + size] = model.local_entry(before, token, generated)

    def _read(self, chunk: Chunk) -> list[int]:
        """The states of the output positions, from everything in the store that each of them sees."""
        end = chunk.start + len(chunk.tokens)
        states = []
        for position in range(end - chunk.outputs, end):
            checksum = self._checksum(chunk, position + 1)
            state = self._local_checksum(chunk, position, position + 1, checksum)
            states.append(self.model.shown(state, chunk.images, position))
        return states

    def _checksum(self, chunk: Chunk, positions: int) -> int:
        store = memoryview(self._store)
        checksum = 0
        for index in range(-(-positions // PAGE_TOKENS)):
            at = chunk.pages[index] * _PAGE_BYTES
            size = min(positions - index * PAGE_TOKENS, PAGE_TOKENS) * _ENTRY.size
            checksum = crc32(store[at : at + size], checksum)
        return checksum

    def _local_checksum(self, chunk: Chunk, position: int, stop: int, checksum: int) -> int:
        """Goes on with the local entries from the first that `position` sees to the one before `stop`."""
        if self.model.local is None:
            return checksum
        store, pages = memoryview(self._local_store), chunk.local_pages or chunk.pages
        at = self.model.first_visible(position)
        while at < stop:
            block, offset = divmod(at, PAGE_TOKENS)
            count = min(stop - at, PAGE_TOKENS - offset)
            begin = pages[block] * _PAGE_BYTES + offset * _ENTRY.size
            checksum = crc32(store[begin : begin + count * _ENTRY.size], checksum)
            at += count
        return checksum

    def _output(self, chunk: Chunk, states: list[int]) -> Output:
        model, want, sampling = self.model, chunk.want, chunk.sampling
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        if want & Want.TOKEN and sampling is not None:
            history = list(chunk.history)
            size = -(-model.vocab // 32) * 4
            for index, state in enumerate(states):
                mask = chunk.mask[index * size : (index + 1) * size] if chunk.mask is not None else b""
                token = model.sample(
                    state, sampling, chunk.seed, chunk.step + index, history, chunk.prompt_tokens, mask
                )
                tokens.append(token)
                history += chunk.tokens[len(chunk.tokens) - chunk.outputs + index + 1 :][:1]
                if sampling.logprobs is not None:
                    every = model.logprobs(state)
                    best = sorted(range(model.vocab), key=lambda t: (-every[t], t))[: sampling.logprobs]
                    logprobs.append(TokenLogprob(token, every[token], tuple((t, every[t]) for t in best)))
        logits = hidden = None
        if want & Want.LOGITS:
            logits = array("f", [value for state in states for value in model.logits(state)])
        if want & Want.HIDDEN:
            hidden = array("f", [value for state in states for value in model.hidden(state)])
        scores: Sequence[float] = ()
        if want & Want.SCORE:
            scores = array("f", [model.logprobs(s)[t] for s, t in zip(states, chunk.targets, strict=True)])
        return Output(chunk.seq, tuple(tokens), tuple(logprobs), logits, scores, hidden)
