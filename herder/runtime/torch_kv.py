"""Keys and values in pages, in PyTorch: the store, and the attention of one batch over it.

A layer's store is two tensors, keys and values, each (pages, PAGE_TOKENS, kv_heads, head_dim). A batch's block tables
say which pages are whose. Chunks of equally many tokens are one call of attention: all decoding sequences together, for
one. Their pages are gathered into rows as long as the longest needs; the mask hides what is not theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herder.core.batch import PAGE_TOKENS, Chunk
from herder.core.config import LayerPlan, ModelConfig
from herder.model.attention import attention, visible

Ints = NDArray[np.int64]


class PageStore:
    """The KV pages of all layers. local_pages: of the layers of bounded reach; 0: `pages`, as for the others."""

    def __init__(
        self, config: ModelConfig, pages: int, local_pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.plans = config.plan
        self.split = local_pages > 0
        self.layers: list[tuple[Tensor, ...]] = []  # keys and values; nothing in cross-attention layers
        for plan in config.plan:
            count = local_pages if self.split and plan.local else pages
            shape = (count, PAGE_TOKENS, config.kv_heads, config.head_dim)
            self.layers.append(tuple(_zeros(shape, dtype, device) for _ in range(0 if plan.cross else 2)))

    @property
    def bytes(self) -> int:
        return sum(store.numel() * store.element_size() for layer in self.layers for store in layer)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros: what a mask hides is multiplied by 0, so it must be finite. On the CPU they come from calloc, which costs
    no memory until it is written to; torch.zeros would write."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * size), np.uint8)).view(dtype)


@dataclass(slots=True)
class _Group:
    """Chunks of equally many tokens, seen by layers of one plan. b chunks, n tokens each, at most m keys.

    rows: where their tokens are in the batch. table: (b * pages) of the gather. keys: m. mask: bool (b, n, m), or None
    where causal says it all, or where the one query sees every key.
    """

    rows: Tensor | slice
    chunks: int
    table: Tensor
    keys: int
    mask: Tensor | None
    causal: bool

    def gather(self, store: Tensor) -> Tensor:
        """(b, m, kv_heads, head_dim), the chunks' keys (or values) in order of position."""
        pages = store.index_select(0, self.table)
        return pages.view(self.chunks, -1, *store.shape[2:])[:, : self.keys]


@dataclass(slots=True)
class _View:
    """A batch as layers of one plan see it. slots: (tokens,) where their keys go, page * PAGE_TOKENS + offset."""

    slots: Tensor
    groups: list[_Group]


class BatchCache:
    """The Cache (herder/model/state.py) of one batch. before_layer is called before each layer, and may raise."""

    def __init__(
        self,
        store: PageStore,
        chunks: Sequence[Chunk],
        device: torch.device,
        before_layer: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._chunks = chunks
        self._device = device
        self._before_layer = before_layer
        self._views: dict[tuple[int | None, int | None], _View] = {}
        counts = [len(chunk.tokens) for chunk in chunks]
        self.starts = np.cumsum([0, *counts])  # of each chunk's tokens in the batch, and their number at the end

    def attend(self, layer: int, plan: LayerPlan, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._before_layer()
        stores, view = self._store.layers[layer], self._view(plan)
        for store, rows in zip(stores, (k, v), strict=True):
            store.flatten(0, 1).index_copy_(0, view.slots, rows)
        out = torch.empty_like(q)
        for group in view.groups:
            keys, values = (group.gather(store) for store in stores)
            queries = q[group.rows].view(group.chunks, -1, *q.shape[1:])
            out[group.rows] = attention(queries, keys, values, group.mask, causal=group.causal).flatten(0, 1)
        return out

    def clear(self, index: int) -> None:
        """Overwrites with zeros what chunk `index` wrote: whoever gets the pages next must not meet NaN in them."""
        first, last = self.starts[index], self.starts[index + 1]
        for plan, stores in zip(self._store.plans, self._store.layers, strict=True):
            for store in stores:
                store.flatten(0, 1)[self._view(plan).slots[first:last]] = 0

    def _view(self, plan: LayerPlan) -> _View:
        """Layers of equal reach share it, and its masks."""
        reach = (plan.window, plan.chunk)
        view = self._views.get(reach)
        if view is None:
            view = self._views[reach] = self._make_view(plan)
        return view

    def _make_view(self, plan: LayerPlan) -> _View:
        own = self._store.split and plan.local
        tables = [np.asarray(chunk.local_pages if own else chunk.pages, np.int64) for chunk in self._chunks]
        slots = []
        alike: dict[int, list[int]] = {}
        for index, (chunk, table) in enumerate(zip(self._chunks, tables, strict=True)):
            count = len(chunk.tokens)
            positions = np.arange(chunk.start, chunk.start + count)
            slots.append(table[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS)
            alike.setdefault(count, []).append(index)
        groups = [self._make_group(plan, count, members, tables) for count, members in alike.items()]
        return _View(self._tensor(np.concatenate(slots)), groups)

    def _make_group(self, plan: LayerPlan, count: int, members: list[int], tables: list[Ints]) -> _Group:
        starts = np.array([self._chunks[index].start for index in members])
        first_pages = np.array([plan.first_visible(int(start)) // PAGE_TOKENS for start in starts])
        ends = starts + count
        keys = int((ends - first_pages * PAGE_TOKENS).max())
        width = -(-keys // PAGE_TOKENS)
        table = np.empty((len(members), width), np.int64)
        for row, (index, first, end) in enumerate(zip(members, first_pages, ends, strict=True)):
            held = tables[index][first : -(-end // PAGE_TOKENS)]
            table[row, : len(held)] = held
            # The mask hides the rest, but multiplies it by 0: one of its own, so that nobody else's NaN gets in.
            table[row, len(held) :] = held[0]
        mask, causal = None, False
        if len(members) == 1 and not plan.local and (starts[0] == 0 or count == 1):
            causal = count > 1
        else:
            queries = starts[:, None] + np.arange(count)
            positions = first_pages[:, None] * PAGE_TOKENS + np.arange(keys)
            mask = visible(plan, self._tensor(queries), self._tensor(positions))
        return _Group(self._rows(members, count), len(members), self._tensor(table.reshape(-1)), keys, mask, causal)

    def _rows(self, members: list[int], count: int) -> Tensor | slice:
        first, last = members[0], members[-1]
        if last - first + 1 == len(members):
            return slice(int(self.starts[first]), int(self.starts[last + 1]))
        return self._tensor((self.starts[members][:, None] + np.arange(count)).reshape(-1))

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(values).to(self._device)
