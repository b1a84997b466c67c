"""How much KV cache a model gets: context and pages of both stores from a model's shape and the memory there is.

Layers of bounded reach (sliding window, chunks) can have a store of their own, of as many pages as their reach takes
rather than the context: Llama 4 keeps 131,072 tokens in 6 GiB of 16-bit values for its 12 global layers and 1.125 GiB
for the 36 others, in place of 24 GiB. A store holds whole pages of all its layers.

The local store holds, for each sequence of the full context that the other one holds, the pages of its reach; besides,
once, those of a batch of prompt tokens, which are written before the oldest go back, and one page for each sequence
that may run. A context so short that this saves nothing gets one store for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from herder.cache.pages import pages_for, reach_pages
from herder.core.batch import PAGE_TOKENS
from herder.core.config import ModelConfig
from herder.core.errors import OutOfMemory, UsageError
from herder.core.sizes import bytes_text

DEFAULT_CONTEXT = 8192
BATCH_TOKENS = 512  # most new tokens in one batch of the native core, and of the torch runtime on a CPU
SEQUENCES = 64  # that may run at once there


class KVPlan(NamedTuple):
    """context: the longest sequence, tokens. pages: of the KV cache, shared by all sequences. local_pages: of the store
    of the layers of bounded reach; 0: they share `pages`. bytes: what all of them take."""

    context: int
    pages: int
    local_pages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Stores:
    """A model's KV pages. page, local_page: bytes of a page in the store of the layers that see everything, and in that
    of the layers of bounded reach. reach: the most local pages that one position sees; extra: local pages beyond the
    reach of each sequence."""

    page: int
    local_page: int
    reach: int
    extra: int

    def local_pages(self, pages: int, sequences: int = 1) -> int:
        """Local pages beside `pages` for so many sequences; never more than that."""
        return min(pages, sequences * self.reach + self.extra)

    def bytes(self, pages: int) -> int:
        """Bytes of both stores for one sequence that fills `pages`."""
        return pages * self.page + self.local_pages(pages) * self.local_page

    def most_pages(self, memory: int) -> int | None:
        """The most pages whose bytes() fit; None: as many as one likes, since no layer sees everything."""
        fixed = self.reach + self.extra
        if self.local_page and memory < fixed * (self.page + self.local_page):
            return memory // (self.page + self.local_page)
        rest = memory - fixed * self.local_page
        return rest // self.page if self.page else None


def stores(
    config: ModelConfig, bytes_per_value: int = 2, *, batch_tokens: int = BATCH_TOKENS, sequences: int = SEQUENCES
) -> Stores:
    """batch_tokens, sequences: the most of a batch and of a running set, by the executor's limits."""
    layers = [layer for layer in config.plan if not layer.cross]
    local = sum(layer.local for layer in layers)
    one = config.kv_layer_bytes(PAGE_TOKENS, bytes_per_value)
    if config.local is None:
        return Stores(len(layers) * one, 0, 0, 0)
    extra = pages_for(batch_tokens) + sequences
    return Stores((len(layers) - local) * one, local * one, reach_pages(config.local), extra)


class SequenceBytes(NamedTuple):
    """Bytes of KV cache of one sequence: in the layers that see everything, and in those of bounded reach."""

    everywhere: int
    local: int


def sequence_bytes(config: ModelConfig, tokens: int, bytes_per_value: int = 2) -> SequenceBytes:
    """What a sequence of `tokens` positions takes: all of them in the layers that see everything, as many as are seen
    in the others. Not in pages: the arithmetic of the model."""
    layers = [layer for layer in config.plan if not layer.cross]
    bounded = [layer.window or layer.chunk or 0 for layer in layers if layer.local]
    one = config.kv_layer_bytes(1, bytes_per_value)
    return SequenceBytes(
        (len(layers) - len(bounded)) * one * tokens, sum(one * min(tokens, reach) for reach in bounded)
    )


def plan_kv(
    config: ModelConfig,
    weight_bytes: int,
    *,
    context: int | None = None,
    kv_memory: int | None = None,
    bytes_per_value: int = 2,
    available: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    sequences: int = SEQUENCES,
) -> KVPlan:
    """How long a sequence may be, and how many pages hold the KV entries of all sequences together.

    context None: the model's own, at most DEFAULT_CONTEXT, and cut to what half of the memory left beside the weights
    holds. kv_memory None: pages for one sequence of the full context, which shorter sequences share; a number of bytes:
    as many pages as it holds, at most those of `sequences` sequences where no layer sees everything. available: bytes
    of free memory, None if unknown. Raises UsageError for what the model cannot do, OutOfMemory with the numbers for
    what the machine cannot.
    """
    if context is not None and not 1 <= context <= config.context:
        raise UsageError(f"context is {context}: must be between 1 and {config.context}, which this model was made for")
    kv = stores(config, bytes_per_value, batch_tokens=batch_tokens, sequences=sequences)
    if kv_memory is not None and kv_memory < kv.bytes(1):
        raise UsageError(
            f"kv_memory is {kv_memory}: must hold at least one page of {PAGE_TOKENS} tokens, {kv.bytes(1)} bytes"
        )
    left = None if available is None else max(0, available - weight_bytes)
    wanted = context or min(config.context, DEFAULT_CONTEXT)
    pages = pages_for(wanted)
    local_pages = kv.local_pages(pages)
    if kv_memory is not None:
        held = kv.most_pages(kv_memory)
        if held is not None and held < pages:
            pages, local_pages = held, kv.local_pages(held)
            if context is not None:
                raise UsageError(
                    f"kv_memory of {bytes_text(kv_memory)} holds {pages * PAGE_TOKENS} tokens, less than the context "
                    f"of {context}: give at least {bytes_text(kv.bytes(pages_for(context)))}"
                )
            wanted = pages * PAGE_TOKENS
        else:
            pages, local_pages = _share(kv, pages, kv_memory, sequences)
    elif context is None and left is not None:
        held = kv.most_pages(left // 2)
        if held is not None and held < pages:
            pages = max(1, held)
            wanted, local_pages = min(wanted, pages * PAGE_TOKENS), kv.local_pages(pages)
    need = pages * kv.page + local_pages * kv.local_page
    if left is not None and need > left:
        raise OutOfMemory(
            f"the weights take {bytes_text(weight_bytes)} and {wanted} tokens of KV cache {bytes_text(need)}, but "
            f"{bytes_text(available or 0)} of memory are free: use a smaller context, model or quantization"
        )
    return KVPlan(wanted, pages, 0 if local_pages >= pages else local_pages, need)


def _share(kv: Stores, context_pages: int, memory: int, sequences: int) -> tuple[int, int]:
    """(pages, local pages) in `memory` bytes, which hold a sequence of context_pages: whole sequences as far as they
    go, in the ratio of what one takes of each store."""
    local = kv.local_pages(context_pages)
    if local == context_pages:  # one store
        pages = memory // (kv.page + kv.local_page)
        return pages, pages if kv.local_page else 0
    rest = memory - kv.bytes(context_pages)
    more = rest * context_pages // (kv.page * context_pages + kv.local_page * kv.reach)
    if not kv.page:
        more = min(more, (sequences - 1) * context_pages)
    return context_pages + more, local + more * kv.reach // context_pages
